#include "simd_plain.h"

#include "f32.inc.h"
