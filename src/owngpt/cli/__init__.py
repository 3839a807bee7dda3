"""One thin file a verb: parse, call the library, print. No logic lives here, and nothing imports this room."""
