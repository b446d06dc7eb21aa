"""Calls of the functions of the C extension that XLA calls, without XLA."""

import cffi
import numpy as np
from pyce._pyce import ffi, lib

DECLARATIONS = """
typedef struct { size_t struct_size; void *e; int major, minor; } xla_version;
typedef struct { size_t struct_size; void *e; const char *message; int code; } xla_error_arguments;
typedef struct { size_t struct_size; void *e; xla_version version; void *internal;
                 void *(*create_error)(xla_error_arguments *); } xla_api;
typedef struct { size_t struct_size; void *e; int dtype; void *data;
                 int64_t rank; int64_t *dims; } xla_buffer;
typedef struct { size_t struct_size; void *e; int64_t size; int *types; void **values; } xla_values;
typedef struct { size_t struct_size; void *e; xla_api *api; void *context; int stage;
                 xla_values arguments; xla_values results; } xla_call_frame;
"""
F32, S32 = 11, 4
DTYPES = {np.dtype(np.float32): F32, np.dtype(np.int32): S32}
SAVING = "cross_entropy_saving"
# The arguments and results of the four kinds of call.
FORWARD = ("logits", "labels"), ("losses",)
BOTH = ("logits", "labels", "factors"), ("losses", "gradient")
SAVED = ("logits", "labels", "guess"), ("losses", "gradient", "now used")
BACKWARD = ("logits", "labels", "factors", "saved", "used"), ("gradient",)


class Call:
    """A call of `pyce_xla_<handler>` with float32 logits of shape (rows, classes, 1).

    `parts` has the buffers of all arguments and results by name, and `arrays` their memory;
    results are 7 before the call.
    """

    def __init__(self, kind, handler="cross_entropy", classes=3, labels=(0, 1)):
        self.ffi = cffi.FFI()
        self.ffi.cdef(DECLARATIONS)
        self.handler, self.keep, self.messages = handler, [], []
        rows = len(labels)
        shape, column = (rows, classes, 1), (rows, 1, 1)

        def full(shape, number):
            return np.full(shape, number, np.float32)

        self.arrays = {
            "logits": np.arange(1, rows * classes + 1, dtype=np.float32).reshape(shape),
            "labels": np.array(labels, np.int32).reshape(column),
            "factors": np.arange(1, rows + 1, dtype=np.float32).reshape(column),
            "saved": full(shape, 5),
            "guess": full(column, 1),
            "used": full(column, 1),
            "losses": full(column, 7),
            "gradient": full(shape, 7),
            "now used": full(column, 7),
        }
        self.parts = {name: self.buffer(array) for name, array in self.arrays.items()}
        self.frame, api = self.new("xla_call_frame *"), self.new("xla_api *")
        self.frame.struct_size, self.frame.api = self.ffi.sizeof("xla_call_frame"), api
        self.frame.stage = 3
        api.struct_size, api.version.major, api.version.minor = self.ffi.sizeof("xla_api"), 0, 3
        api.version.struct_size = self.ffi.sizeof("xla_version")
        api.create_error = self.callback = self.ffi.callback(
            "void *(xla_error_arguments *)", self.create_error
        )
        arguments, self.results = kind
        for values, names in (
            (self.frame.arguments, arguments),
            (self.frame.results, self.results),
        ):
            values.struct_size, values.size = self.ffi.sizeof("xla_values"), len(names)
            values.types = self.new("int[]", [1] * len(names))
            values.values = self.new("void *[]", [self.parts[name] for name in names])

    def new(self, *arguments):
        self.keep.append(self.ffi.new(*arguments))
        return self.keep[-1]

    def buffer(self, array):
        b = self.new("xla_buffer *")
        b.struct_size, b.dtype = self.ffi.sizeof("xla_buffer"), DTYPES[array.dtype]
        b.rank, b.dims = array.ndim, self.new("int64_t[]", array.shape)
        b.data = self.ffi.cast("void *", array.ctypes.data)
        return b

    def create_error(self, error):
        self.messages.append(f"{error.code} {self.ffi.string(error.message).decode()}")
        return self.ffi.cast("void *", 1)

    def run(self):
        """The codes and messages of the errors that the handler makes: none, or one."""
        address = int(self.ffi.cast("uintptr_t", self.frame))
        handle = getattr(lib, f"pyce_xla_{self.handler}")
        failed = handle(ffi.cast("void *", address)) != ffi.NULL
        assert failed == bool(self.messages)
        return self.messages

    def result(self):
        """The last result of the call, as a list."""
        return self.arrays[self.results[-1]].ravel().tolist()
