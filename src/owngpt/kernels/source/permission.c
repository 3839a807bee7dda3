/* Whether there are matrix tiles. Part of both libraries. */
#include "tiles.h"

#ifdef __AMX_BF16__
/* Ask the kernel for the tile registers, once a process. 1 if they are ours to use. */
int owngpt_has_tiles(void) { return syscall(SYS_arch_prctl, TILE_PERMISSION, TILE_DATA) == 0; }
#else
int owngpt_has_tiles(void) { return 0; }
#endif
