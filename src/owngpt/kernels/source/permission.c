/* What the matrix unit is made of: 2 of AMX registers, 1 of vectors, 0: there is none. Part of both libraries. */
#include "tiles.h"

#if defined(MATRIX_UNIT) && defined(__AMX_BF16__)
/* Asks the operating system for the registers, once a process. */
int owngpt_matrix_unit(void) { return syscall(SYS_arch_prctl, TILE_PERMISSION, TILE_DATA) == 0 ? 2 : 0; }
#elif defined(MATRIX_UNIT)
int owngpt_matrix_unit(void) { return 1; }
#else
int owngpt_matrix_unit(void) { return 0; }
#endif
