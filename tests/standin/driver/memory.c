/* Memory: of the device, which is the host's under another name, and pinned. No address is ever given twice. */
#define _GNU_SOURCE
#include "standin.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NEVER_WRITTEN 0xA5

typedef struct {
    uintptr_t base;
    size_t nbytes, mapped;
    int host, alive;
} Range;

static Range *ranges;
static size_t range_count, range_room;
static size_t limit = (size_t)48 << 30, used;

static Range *range_at(uintptr_t address) {
    for (size_t i = range_count; i-- > 0;)
        if (ranges[i].base <= address && address < ranges[i].base + ranges[i].mapped) return &ranges[i];
    return NULL;
}

static CUresult allocate(uintptr_t *address, size_t nbytes, int host) {
    if (nbytes == 0) {
        standin_violation("an allocation of nothing");
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!host && used + nbytes > limit) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t mapped = (nbytes + 4095) / 4096 * 4096;
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(memory, NEVER_WRITTEN, nbytes);
    if (range_count == range_room) {
        range_room = range_room ? 2 * range_room : 64;
        ranges = realloc(ranges, range_room * sizeof *ranges);
    }
    ranges[range_count++] = (Range){(uintptr_t)memory, nbytes, mapped, host, 1};
    if (!host) used += nbytes;
    *address = (uintptr_t)memory;
    return CUDA_SUCCESS;
}

static CUresult give_back(uintptr_t address, int host, const char *function) {
    Range *range = range_at(address);
    if (range == NULL || range->base != address || range->host != host || !range->alive) {
        standin_violation("%s: %#lx is no memory of its kind, or was freed", function, (unsigned long)address);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (standin_pending(range->base, range->nbytes))
        standin_violation("%s: memory was freed that work still pending uses", function);
    /* Kept, but out of reach: the address never comes again, and who uses it is stopped. */
    mprotect((void *)range->base, range->mapped, PROT_NONE);
    madvise((void *)range->base, range->mapped, MADV_DONTNEED);
    range->alive = 0;
    if (!host) used -= range->nbytes;
    return CUDA_SUCCESS;
}

int standin_range_ok(uintptr_t address, size_t nbytes, int host, const char *what) {
    Range *range = range_at(address);
    if (range == NULL || range->host != host) {
        standin_violation("%s: %#lx is no %s memory", what, (unsigned long)address, host ? "pinned" : "device");
        return 0;
    }
    if (!range->alive) {
        standin_violation("%s: %s memory was used after it was freed", what, host ? "pinned" : "device");
        return 0;
    }
    if (address + nbytes > range->base + range->nbytes) {
        standin_violation("%s: %zu bytes do not fit into %zu", what, nbytes, range->nbytes);
        return 0;
    }
    return 1;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t nbytes) {
    ENTER_UNCAPTURED();
    uintptr_t found = 0;
    CUresult code = allocate(&found, nbytes, 0);
    *address = found;
    LEAVE(code);
}

CUresult cuMemFree(CUdeviceptr address) {
    ENTER_UNCAPTURED();
    LEAVE(give_back(address, 0, __func__));
}

CUresult cuMemHostAlloc(void **address, size_t nbytes, unsigned flags) {
    ENTER_UNCAPTURED();
    if (flags != 0) standin_violation("cuMemHostAlloc: the stand-in knows no flags");
    uintptr_t found = 0;
    CUresult code = allocate(&found, nbytes, 1);
    *address = (void *)found;
    LEAVE(code);
}

CUresult cuMemFreeHost(void *address) {
    ENTER_UNCAPTURED();
    LEAVE(give_back((uintptr_t)address, 1, __func__));
}

CUresult cuMemGetInfo(size_t *free, size_t *total) {
    ENTER(WORKING_CONTEXT);
    *free = limit - used;
    *total = limit;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceTotalMem(size_t *nbytes, CUdevice device) {
    ENTER(NO_CONTEXT);
    *nbytes = limit;
    LEAVE(device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void *source, size_t nbytes, CUstream handle) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (!standin_range_ok(target, nbytes, 0, __func__) || !standin_range_ok((uintptr_t)source, nbytes, 1, __func__))
        LEAVE(CUDA_ERROR_INVALID_VALUE);
    Op op = {.kind = COPY_IN, .target = target, .source = (uintptr_t)source, .nbytes = nbytes};
    LEAVE(standin_enqueue(stream, op));
}

CUresult cuMemcpyDtoHAsync(void *target, CUdeviceptr source, size_t nbytes, CUstream handle) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (!standin_range_ok((uintptr_t)target, nbytes, 1, __func__) || !standin_range_ok(source, nbytes, 0, __func__))
        LEAVE(CUDA_ERROR_INVALID_VALUE);
    Op op = {.kind = COPY_OUT, .target = (uintptr_t)target, .source = source, .nbytes = nbytes};
    LEAVE(standin_enqueue(stream, op));
}

/* What the tests ask and order from outside */

void standin_wipe_memory(void) {
    for (size_t i = 0; i < range_count; i++) ranges[i].alive = 0;
    used = 0;
}

void standin_limit(size_t nbytes) { limit = nbytes; }

size_t standin_used(void) { return used; }

int standin_pinned_live(void) {
    int live = 0;
    pthread_mutex_lock(&standin_lock);
    for (size_t i = 0; i < range_count; i++) live += ranges[i].host && ranges[i].alive;
    pthread_mutex_unlock(&standin_lock);
    return live;
}

/* Whether a kernel may touch this device memory; what it must not becomes a violation. */
int standin_may_touch(uintptr_t address, size_t nbytes, const char *what) {
    pthread_mutex_lock(&standin_lock);
    int fine = standin_range_ok(address, nbytes, 0, what);
    pthread_mutex_unlock(&standin_lock);
    return fine;
}
