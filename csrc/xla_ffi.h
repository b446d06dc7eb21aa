/* The part of XLA's foreign function interface (FFI) that the handler in xla_ffi.c uses, declared
 * here so that pyce builds without XLA.
 *
 * The layout is that of xla/ffi/api/c_api.h, versions 0.1 (jaxlib 0.6) to 0.3 (jaxlib 0.10), which
 * agree in these structures. Each begins with its size. XLA appends fields to a structure and
 * counts a minor version up; the handler refuses smaller structures and any other major version,
 * and accepts larger ones, except where a structure lies within another one before fields that are
 * used.
 */
#ifndef PYCE_XLA_FFI_H
#define PYCE_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_MAJOR = 0, XLA_MINOR = 1 };
enum { XLA_METADATA = 1 }; /* type of an extension */
enum { XLA_EXECUTE = 3 };  /* stage */
enum { XLA_BUFFER = 1 };   /* type of an argument or result */
enum {
    XLA_INVALID_ARGUMENT = 3,
    XLA_RESOURCE_EXHAUSTED = 8,
    XLA_UNIMPLEMENTED = 12,
    XLA_INTERNAL = 13
};
enum { XLA_S32 = 4, XLA_S64 = 5, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

typedef struct {
    size_t struct_size;
    xla_version version; /* written by the handler */
    uint32_t traits;     /* written by the handler */
} xla_metadata;

typedef struct {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_error xla_error;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const char *message; /* XLA copies it */
    int code;
} xla_error_arguments;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_error_arguments *);
} xla_api;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;

/* The arguments or the results of a call. */
typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    int *types;
    void **values; /* xla_buffer *, where the type is XLA_BUFFER */
} xla_values;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_values arguments;
    xla_values results;
    /* Attributes and a future follow. */
} xla_call_frame;

#endif
