/* Clears what stamp.inc.h defines for one dtype. */
#undef T
#undef IS_NATIVE
#undef NAME
#undef GET
#undef LOAD
#undef LOADN
#undef STORE
#undef STOREN
#undef STREAM
#undef ROUND
