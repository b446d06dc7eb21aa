/* One number of a half type: widened to float, which is exact, and rounded from float, to nearest even.
 */
#ifndef PYCE_HALF_TYPES_H
#define PYCE_HALF_TYPES_H

#include <stdint.h>
#include <string.h>

static inline float bits_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float from_bf16(uint16_t h) { return bits_float((uint32_t)h << 16); }
static inline uint16_t to_bf16(float f) {
    const uint32_t bits = float_bits(f);
    if (f != f) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t rest = (uint32_t)(h & 0x7fff);
    if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return bits_float(sign | (rest + ((127 - 15) << 10)) << 13);
    const float small = (float)rest * 0x1p-24f; /* subnormal, exact */
    return sign ? -small : small;
}
static inline uint16_t to_f16(float f) {
    const uint32_t bits = float_bits(f);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 2^16 or more */
    if (size < 0x38800000) {
        /* Subnormal: adding 0.5 rounds at 2^-24, the spacing of the subnormals. */
        return (uint16_t)(sign | (float_bits(bits_float(size) + 0.5f) - float_bits(0.5f)));
    }
    return (uint16_t)(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
}

#endif
