/* Logits and results in float32. The m_ operations read and write arrays of elements. */
#include "real_f32.h"

#define DTYPE f32
typedef float element;
#define IS_NATIVE 1  /* whether element and real are one type */
#define SAVES_REAL 0 /* whether gradients are saved as real for a later scaling */

#define m_get(p) (*(p))
#define m_load vf_load
#define m_loadn vf_loadn
#define m_store vf_store
#define m_storen vf_storen
#define m_stream vf_stream
#define m_load_rows vf_load_rows
#define m_store_rows vf_store_rows
