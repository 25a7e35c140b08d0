/* Graphs: what a stream was given while capturing, to be launched as one. */
#include "standin.h"

#include <stdlib.h>

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (stream->captured != NULL) {
        standin_violation("a capture began within another");
        LEAVE(CUDA_ERROR_ILLEGAL_STATE);
    }
    stream->captured = calloc(1, sizeof *stream->captured);
    stream->mode = mode;
    stream->capturer = pthread_self();
    stream->invalidated = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph_handle) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (stream->captured == NULL) LEAVE(CUDA_ERROR_ILLEGAL_STATE);
    Nodes *nodes = stream->captured;
    stream->captured = NULL;
    *graph_handle = NULL;
    if (stream->invalidated) LEAVE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    Graph *graph = calloc(1, sizeof *graph);
    graph->nodes = nodes;
    *graph_handle = standin_handle(&graph->object, GRAPH);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *handle, CUgraph graph_handle, unsigned long long flags) {
    ENTER(WORKING_CONTEXT);
    Graph *graph;
    OBJECT(graph, graph_handle, GRAPH, CUDA_ERROR_INVALID_VALUE);
    if (flags != 0) standin_violation("cuGraphInstantiateWithFlags: the stand-in knows no flags");
    Graph *executable = calloc(1, sizeof *executable);
    executable->nodes = calloc(1, sizeof *executable->nodes);
    executable->nodes->alive = 1;
    for (size_t i = 0; i < graph->nodes->count; i++) standin_append(executable->nodes, graph->nodes->ops[i]);
    *handle = standin_handle(&executable->object, EXECUTABLE);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    ENTER(WORKING_CONTEXT);
    Graph *executable;
    OBJECT(executable, handle, EXECUTABLE, CUDA_ERROR_INVALID_VALUE);
    Stream *stream = standin_stream(stream_handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    Op op = {.kind = LAUNCH_GRAPH, .nodes = executable->nodes};
    LEAVE(standin_enqueue(stream, op));
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    ENTER(WORKING_CONTEXT);
    Graph *executable;
    OBJECT(executable, handle, EXECUTABLE, CUDA_ERROR_INVALID_VALUE);
    executable->object.alive = 0;
    executable->nodes->alive = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphDestroy(CUgraph handle) {
    ENTER(WORKING_CONTEXT);
    Graph *graph;
    OBJECT(graph, handle, GRAPH, CUDA_ERROR_INVALID_VALUE);
    graph->object.alive = 0;
    LEAVE(CUDA_SUCCESS);
}
