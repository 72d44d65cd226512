// Streams, events and graphs of the simulated runtime. Work on a stream runs at once, unless
//   simt_settings.lazy_streams is set: work on a stream other than the default one waits in a queue until somebody
//     synchronises with it (stream, device or event synchronisation, a copy to pageable memory, a wait for its event by
//     another stream that is itself run). Forgotten synchronisation then shows as stale data. The default stream runs
//     at once, after all streams that were not created cudaStreamNonBlocking.
//   the stream captures: then the work is recorded, with its arguments, and runs at each cudaGraphLaunch. As with the
//     real one, synchronising and allocating fail meanwhile and spoil the capture. Other streams cannot join a capture.
// Streams and events are for one host thread at a time. A collective (nccl.h) runs beside the host: later work of its
// stream waits for it, and cudaStreamQuery says that it is not over.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <utility>
#include "simt.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorCudartUnloading = 4,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalState = 401,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle:
            return "invalid resource handle";
        case cudaErrorIllegalState:
            return "the operation cannot be performed in the present state";
        case cudaErrorNotReady:
            return "device not ready";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        default:
            return "an error of the simulated runtime";
    }
}

// A launch that failed has thrown; what is left is the cudaErrorNotReady of a query, which the next check of a launch would
// take for its own.
inline cudaError_t& simt_last_error() {
    static thread_local cudaError_t error = cudaSuccess;
    return error;
}
inline cudaError_t cudaGetLastError() { return std::exchange(simt_last_error(), cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return simt_last_error(); }
inline cudaError_t simt_not_ready() { return simt_last_error() = cudaErrorNotReady; }

// ---------------------------------------------------------------------------------------------------------------------
// streams

typedef std::function<void()> SimtWork;

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed,
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated,
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };

struct SimtGraph {
    std::vector<SimtWork> nodes;
};
typedef SimtGraph* cudaGraph_t;
typedef SimtWork* cudaGraphNode_t;
struct SimtGraphExec {
    std::vector<SimtWork> nodes;
};
typedef SimtGraphExec* cudaGraphExec_t;

struct SimtStream {
    unsigned flags = 0;
    std::function<bool(bool wait)> running;  // work that goes on by itself, before the queue: is it over?
    std::deque<SimtWork> queue;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
    SimtGraph graph;  // what the capture has recorded
};
typedef SimtStream* cudaStream_t;

inline std::set<SimtStream*>& simt_streams() {
    static std::set<SimtStream*> streams;
    return streams;
}

// waits for what runs by itself
inline void simt_finish_running(SimtStream* stream) {
    if (stream->running) stream->running(true);
    stream->running = nullptr;
}

// what runs by itself, and the first piece of the queue
inline void simt_run_first(SimtStream* stream) {
    simt_finish_running(stream);
    SimtWork work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
}

inline void simt_drain(SimtStream* stream) {
    while (!stream->queue.empty()) simt_run_first(stream);
    simt_finish_running(stream);
}

inline void simt_drain_all(bool blocking_only) {
    for (SimtStream* stream : simt_streams())
        if (!blocking_only || !(stream->flags & cudaStreamNonBlocking)) simt_drain(stream);
}

// whether work on the stream is to run now, in the calling function; if not, it goes to simt_later
inline bool simt_runs_now(cudaStream_t stream) {
    if (stream && (stream->capture != cudaStreamCaptureStatusNone || simt_settings.lazy_streams)) return false;
    if (stream) simt_drain(stream);
    else simt_drain_all(true);
    return true;
}

inline void simt_later(cudaStream_t stream, SimtWork work) {
    if (stream->capture == cudaStreamCaptureStatusNone) stream->queue.push_back(std::move(work));
    else if (stream->capture == cudaStreamCaptureStatusActive) stream->graph.nodes.push_back(std::move(work));
}

inline void simt_enqueue(cudaStream_t stream, SimtWork work) {
    if (simt_runs_now(stream)) work();
    else simt_later(stream, std::move(work));
}

// What a capture forbids: spoils it. stream: the one the caller is to wait for, or null for all that captures meanwhile
// and is not relaxed
inline cudaError_t simt_forbidden_in_capture(cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (SimtStream* s : simt_streams()) {
        if (stream ? s != stream : s->capture_mode == cudaStreamCaptureModeRelaxed) continue;
        if (s->capture == cudaStreamCaptureStatusNone) continue;
        s->capture = cudaStreamCaptureStatusInvalidated;
        error = cudaErrorStreamCaptureUnsupported;
    }
    return error;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = new SimtStream;
    (*stream)->flags = flags;
    simt_streams().insert(*stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    simt_drain(stream);
    simt_streams().erase(stream);
    delete stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream) {
        cudaError_t error = simt_forbidden_in_capture(stream);
        if (error != cudaSuccess) return error;
        simt_drain(stream);
    } else simt_drain_all(true);
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    cudaError_t error = simt_forbidden_in_capture(nullptr);
    if (error == cudaSuccess) simt_drain_all(false);
    return error;
}
// Each question lets one piece of work run, so that a loop of them ends.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (!stream) return cudaSuccess;
    if (stream->running && !stream->running(false)) return simt_not_ready();
    stream->running = nullptr;
    if (stream->queue.empty()) return cudaSuccess;
    simt_run_first(stream);
    return simt_not_ready();
}

// ---------------------------------------------------------------------------------------------------------------------
// events

enum {
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
};

// one record of an event
struct SimtMark {
    SimtStream* stream;
    bool reached = false;
    double seconds = 0;
};
struct SimtEvent {
    unsigned flags = 0;
    std::shared_ptr<SimtMark> mark;  // the last record
};
typedef SimtEvent* cudaEvent_t;

inline void simt_drain_to(SimtMark& mark) {
    while (!mark.reached) simt_run_first(mark.stream);
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = new SimtEvent;
    (*event)->flags = flags;
    return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    if (stream) {
        cudaError_t error = simt_forbidden_in_capture(stream);
        if (error != cudaSuccess) return error;
    }
    auto mark = std::make_shared<SimtMark>();
    mark->stream = stream;
    event->mark = mark;
    simt_enqueue(stream, [mark] {
        mark->reached = true;
        mark->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->mark) simt_drain_to(*event->mark);
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (!event->mark || event->mark->reached) return cudaSuccess;
    cudaStreamQuery(event->mark->stream);
    return simt_not_ready();
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if ((start->flags | end->flags) & cudaEventDisableTiming || !start->mark || !end->mark)
        return cudaErrorInvalidResourceHandle;
    if (!start->mark->reached || !end->mark->reached) return cudaErrorNotReady;
    *milliseconds = (float)((end->mark->seconds - start->mark->seconds) * 1e3);
    return cudaSuccess;
}
// what the event's last record at the time of the call stands for comes before later work of the stream
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (stream) {
        cudaError_t error = simt_forbidden_in_capture(stream);
        if (error != cudaSuccess) return error;
    }
    if (std::shared_ptr<SimtMark> mark = event->mark) simt_enqueue(stream, [mark] { simt_drain_to(*mark); });
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// graphs

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (!stream) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != cudaStreamCaptureStatusNone) return cudaErrorIllegalState;
    stream->capture = cudaStreamCaptureStatusActive;
    stream->capture_mode = mode;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    if (!stream || stream->capture == cudaStreamCaptureStatusNone) return cudaErrorIllegalState;
    bool spoilt = stream->capture == cudaStreamCaptureStatusInvalidated;
    stream->capture = cudaStreamCaptureStatusNone;
    if (!spoilt) *graph = new SimtGraph(std::move(stream->graph));
    stream->graph = SimtGraph();
    return spoilt ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = stream ? stream->capture : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
    *exec = nullptr;
    if (!graph) return cudaErrorInvalidValue;
    *exec = new SimtGraphExec{graph->nodes};
    return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (nodes)
        for (size_t i = 0; i < *count && i < graph->nodes.size(); i++) nodes[i] = &graph->nodes[i];
    *count = graph->nodes.size();
    return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (!exec) return cudaErrorInvalidValue;
    if (stream) {
        cudaError_t error = simt_forbidden_in_capture(stream);  // the real one would nest the graph
        if (error != cudaSuccess) return error;
    }
    auto replay = [](const std::vector<SimtWork>& nodes) {
        for (const SimtWork& node : nodes) node();
    };
    if (simt_runs_now(stream)) replay(exec->nodes);
    else simt_later(stream, [replay, nodes = exec->nodes] { replay(nodes); });
    return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// launches

// The arguments are converted to the kernel's parameter types once, and copied for every thread.
template <class... P, class... A>
void simt_launch(const char* kernel_name, const char* file, int line, dim3 grid, dim3 dim, size_t shared_bytes,
                 cudaStream_t stream, void (*kernel)(P...), A&&... arguments) {
    simt_check_launch(kernel_name, file, line, grid, dim, shared_bytes,
                      simt_shared(reinterpret_cast<const void*>(kernel)));
    std::tuple<std::decay_t<P>...> parameters(static_cast<std::decay_t<P>>(arguments)...);
    auto run = [=]() mutable {
        auto call = [&] { std::apply(kernel, parameters); };
        simt_run(
            kernel_name, file, line, grid, dim, shared_bytes, [](void* c) { (*static_cast<decltype(call)*>(c))(); },
            &call);
    };
    if (simt_runs_now(stream)) run();
    else simt_later(stream, run);
}
