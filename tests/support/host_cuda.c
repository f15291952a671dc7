/* A stand-in for NVIDIA's driver library (libcuda.so.1) on host memory, with the functions that `cuda_bindings.py`
   calls. Streams work at once; a capture records copies. It shows that our calls reach a driver with the right
   arguments, and proves nothing about a GPU. Every call that needs a current context fails with 201 without one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { void *to, *from; size_t size; } Copy;
typedef struct { Copy copies[16]; int count; } Graph;
typedef struct { Graph *recording; } Stream;

static __thread int depth = 0;
#define NEED_CONTEXT if (depth <= 0) return 201

int cuInit(unsigned flags) { return getenv("HOST_CUDA_NO_DEVICE") ? 100 : 0; }
static int driver_version() { return getenv("HOST_CUDA_VERSION") ? atoi(getenv("HOST_CUDA_VERSION")) : 13050; }
int cuDriverGetVersion(int *version) { *version = driver_version(); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Host memory"); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 8 : which == 76 ? 7 : which == 16 ? 4 : which == 18 || which == 19; /* capability 8.7; integrated; can map */
    return 0;
}
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = 1 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x77; return 0; }
int cuCtxPushCurrent_v2(void *context) { depth++; return context == (void *)0x77 ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { depth--; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) { NEED_CONTEXT; *address = (uint64_t)malloc(size); return 0; }
int cuMemFree_v2(uint64_t address) { NEED_CONTEXT; free((void *)address); return 0; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    NEED_CONTEXT;
    *memory = malloc(size);
    printf("host memory: flags %u\n", flags);
    return 0;
}
int cuMemFreeHost(void *memory) { NEED_CONTEXT; free(memory); printf("host memory freed\n"); return 0; }
int cuMemHostGetDevicePointer_v2(uint64_t *address, void *memory, unsigned flags) {
    *address = (uint64_t)memory;
    return 0;
}
int cuStreamCreate(Stream **stream, unsigned flags) {
    NEED_CONTEXT;
    *stream = calloc(1, sizeof(Stream));
    printf("stream: flags %u\n", flags);
    return 0;
}
int cuStreamDestroy_v2(Stream *stream) { NEED_CONTEXT; free(stream); printf("stream freed\n"); return 0; }
int cuStreamSynchronize(Stream *stream) { NEED_CONTEXT; return 0; }
static int copy(void *to, const void *from, size_t size, Stream *stream) {
    NEED_CONTEXT;
    if (stream->recording) stream->recording->copies[stream->recording->count++] = (Copy){to, (void *)from, size};
    else memcpy(to, from, size);
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) {
    return copy((void *)to, from, size, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
    return copy(to, (void *)from, size, stream);
}
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    NEED_CONTEXT;
    stream->recording = calloc(1, sizeof(Graph));
    printf("capture: mode %d\n", mode);
    return 0;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) { *graph = stream->recording; stream->recording = 0; return 0; }
int cuGraphInstantiateWithFlags(Graph **ready, Graph *graph, unsigned long long flags) {
    *ready = malloc(sizeof(Graph));
    **ready = *graph;
    return 0;
}
int cuGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
    for (size_t i = 0; nodes && i < *count; i++) nodes[i] = (void *)(i + 1);
    *count = graph->count;
    return 0;
}
int cuGraphNodeGetType(void *node, int *type) { *type = 1; return 0; } /* a copy */
int cuGraphDestroy(Graph *graph) { free(graph); return 0; }
int cuGraphExecDestroy(Graph *graph) { free(graph); return 0; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
    NEED_CONTEXT;
    for (int i = 0; i < graph->count; i++) memcpy(graph->copies[i].to, graph->copies[i].from, graph->copies[i].size);
    return 0;
}
int cuEventCreate(void **event, unsigned flags) {
    static int count = 0;
    const char *most = getenv("HOST_CUDA_EVENTS"); /* later ones are out of memory */
    NEED_CONTEXT;
    if (most && count++ >= atoi(most)) return 2;
    *event = malloc(1);
    printf("event: flags %u\n", flags);
    return 0;
}
int cuEventDestroy_v2(void *event) { NEED_CONTEXT; free(event); printf("event freed\n"); return 0; }
int cuEventSynchronize(void *event) { NEED_CONTEXT; printf("event waited for\n"); return 0; }
int cuEventRecord(void *event, void *stream) {
    NEED_CONTEXT;
    if ((size_t)stream <= 2) printf("waits for stream %zu\n", (size_t)stream); /* a default stream */
    return 0;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { NEED_CONTEXT; return 0; }
int cuEventElapsedTime(float *ms, void *start, void *end) { NEED_CONTEXT; *ms = start != end ? 1.5f : 0; return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { NEED_CONTEXT; *free_bytes = 3 << 20; *total = 4 << 20; return 0; }
int cuPointerGetAttribute(int *value, int which, uint64_t address) { *value = which == 9 ? 0 : -1; return 0; }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    const char *endings[] = {"_v2", "", "WithFlags"};
    void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    char full[128];
    *function = 0;
    /* An older driver lacks what came after it, such as the newer form of cuEventElapsedTime (12.8). */
    for (int i = 0; i < 3 && !*function && version <= driver_version(); i++) {
        snprintf(full, sizeof full, "%s%s", name, endings[i]);
        *function = dlsym(self, full);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
