"""`python -m pyce bench`, `report`, `compare` and `demo`.

`import pyce` imports nothing from here. What the commands need in addition to NumPy comes with the
extra `bench`, for the demo with `training`. Each command imports it on use, so that `--help` works
without.

Lower layers come first; a module imports only what is above it:

memory        the memory that a call adds
workloads     the registry of shapes, dtypes and targets, and their arrays
calls         pyce's operations on these arrays, as calls without arguments
floors        the time to read or copy the same bytes
disturbance   the processor time that other programs take meanwhile
peers         other libraries, as calls on the same arrays
head          the last layer of a language model: its arrays, and the calls of pyce and PyTorch
candidates    the registry of all that is measured: backends, variants, floors, peers
measure       measuring candidates in turn, on the same buffers, in blocks
suite         pytest items that hand the times to pytest-benchmark
results       the files that pytest-benchmark writes, read again
significance  which differences between two files are changes
report        pictures and a page of such files
bench, compare, demo    the commands; `progress` and `formats` are for their output
"""
