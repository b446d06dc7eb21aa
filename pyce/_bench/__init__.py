"""What is behind `python -m pyce bench`, `check`, `report`, `compare` and `demo`.

Nothing here is imported by `import pyce`. What the commands need beyond NumPy comes with the extra
`bench`, for the demo `training`; each imports it when it is used, so that `--help` works without.

workloads   the registry of what is measured, and its arrays
candidates  the registry of who is measured: backends, floors, peers
measure     how: in turn, on the same buffers, in blocks
suite       pytest items that hand the figures to pytest-benchmark
results     the files that pytest-benchmark writes, read again
exact       what results should be, in twice the precision, by code that shares nothing with pyce
regimes     kinds of logits and targets, made up; `real` has real ones
promises    what is promised, and the comparisons that show whether it holds
demo        pyce.training, from image files to pictures of two trainings
"""
