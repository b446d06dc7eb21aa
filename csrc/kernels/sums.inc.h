/* Sums of many vectors, lane by lane (vsum), and the order in which lanes are added up. Floats are
 * added up as doubles one by one: one term is often nearly all of the sum, and roundings on the way
 * to double precision would be the loss's. Doubles are added up with the rounding errors.
 */
#include SUMS_INC

/* The sums over a row's classes: e without the row's pivot, b, b·(max − x), and max − x. */
enum { SUM_E, SUM_B, SUM_LOSS, SUM_DISTANCE };
