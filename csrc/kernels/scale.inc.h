/* The backward pass from a saved gradient: its numbers times one factor.
 *
 * A saved gradient has the dtype of the logits, but float for float16 logits: it is rounded to float16
 * here, after it has been scaled.
 */
#if SAVES_REAL
typedef real saved_number;
#define s_load v_load
#define s_loadn v_loadn
#else
typedef element saved_number;
#define s_load m_load
#define s_loadn m_loadn
#endif

/* `result` may be `saved` if their numbers have one type. */
static void scale_saved(const void *saved, void *result, int64_t n, double factor) {
    const saved_number *from = saved;
    element *to = result;
    const vreal by = v_set1((real)factor);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) m_store(to + i, v_mul(s_load(from + i), by));
    const int rest = (int)(n - i);
    if (rest) m_storen(to + i, rest, v_mul(s_loadn(from + i, rest, 0), by));
}
