/* The instruction sets that this build has, and the one in use. */
#ifndef PYCE_DISPATCH_H
#define PYCE_DISPATCH_H

#include "kernels/kernels.h"

/* The kernels in use: the widest that this machine runs, unless pyce_set_isa chose. */
const pyce_kernels *pyce_dispatch(void);

#endif
