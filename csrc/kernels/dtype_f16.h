/* Logits and results in float16, computed in float32. The m_ operations read and write arrays of
   elements. */
#include "real_f32.h"

#define DTYPE f16
typedef uint16_t element;
#define IS_NATIVE 0  /* whether element and real are one type */
#define SAVES_REAL 1 /* whether gradients are saved as real for a later scaling */

#define m_get vf_get_f16
#define m_load vf_load_f16
#define m_loadn vf_loadn_f16
#define m_store vf_store_f16
#define m_storen vf_storen_f16
#define m_stream vf_stream_f16
#define m_load_rows vf_load_rows_f16
#define m_store_rows vf_store_rows_f16
