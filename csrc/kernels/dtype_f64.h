/* Logits and results in float64. The m_ operations read and write arrays of elements. */
#include "real_f64.h"

#define DTYPE f64
typedef double element;
#define IS_NATIVE 1  /* whether element and real are one type */
#define SAVES_REAL 0 /* whether gradients are saved as real for a later scaling */

#define m_get(p) (*(p))
#define m_load vd_load
#define m_loadn vd_loadn
#define m_store vd_store
#define m_storen vd_storen
#define m_stream vd_stream
