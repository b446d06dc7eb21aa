/* The choice among the instruction sets of this build. */
#ifndef PYCE_DISPATCH_H
#define PYCE_DISPATCH_H

#include "kernels/kernels.h"

/* The kernels in use: the widest that this machine supports, unless pyce_set_isa chose others. */
const pyce_kernels *pyce_dispatch(void);

#endif
