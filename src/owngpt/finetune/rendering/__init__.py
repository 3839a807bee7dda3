"""Examples as a model reads them, and as a person sees which tokens are learned."""
