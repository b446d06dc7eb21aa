"""`python -m pyce check`: compare every backend with exact results. NumPy is all that it needs.

Nothing here measures time, and nothing here imports `pyce._bench`. Lower layers come first:

oracle         exact results in double-double arithmetic, by code that shares nothing with pyce
regimes        kinds of logits and targets, generated; `real_data` has real ones
promises       the error bounds, the other promises in words, and the SHA-256 of known results
findings       what a check has compared, and the failures that it found
accuracy       errors in units in the last place (ULP) against the oracle
same_bytes     the C backend's results are the same bytes everywhere
special_cases  half types, labels out of range, special values
check          the command
"""
