#include "simd_plain.h"

#include "f64.inc.h"
