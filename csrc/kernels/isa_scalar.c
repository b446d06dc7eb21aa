/* The kernels in plain C, for every machine. A NEON dialect would stand beside this file as
 * isa_neon.c with simd_neon.h, and have its line in dispatch.c. */

/* Calls, not copies: inlined, the loops of this dialect would take compilers minutes, for kernels
   that are there to be right everywhere. */
#ifndef INLINE
#define INLINE static __attribute__((noinline, unused))
#endif
#include "kernels.h"
#include "simd_scalar.h"

#include "vmath.inc.h"

#include "elementwise.inc.h"
#include "stamp.inc.h"

static int supported(void) { return 1; }
KERNELS(scalar, supported);
