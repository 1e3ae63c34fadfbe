// The GPU as the drivers see it: a team is a block, or the blocks of a cluster, and a device is memory and launches on
// one stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cublas.hpp"
#include "cuda/device.hpp"
#include "cuda/products.hpp"
#include "cuda/solve_cuda.hpp"
#include "cuda/team.hpp"
#include "pysubmod/error.hpp"

namespace pysubmod::cuda {

// The concept of team.hpp, with the bits of HostTeam. Every warp is full.
class DeviceTeam {
  public:
    // Two sets of slots, in turn: what one reduction reads, the next but one writes, and a barrier lies between.
    static constexpr std::size_t kBytes = 2 * 2 * kSumLanes * sizeof(double);
    static_assert(kMostThreads / 32 <= kSumLanes);

    // The blocks of a cluster are neighbours in the grid.
    __device__ explicit DeviceTeam(int blocks)
        : blocks_(blocks),
          block_(static_cast<int>(blockIdx.x) % blocks),
          team_(static_cast<int>(blockIdx.x) / blocks) {}

    __device__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ int size() const { return static_cast<int>(blockDim.x); }
    __device__ int block() const { return block_; }
    __device__ int n_blocks() const { return blocks_; }
    __device__ int team() const { return team_; }
    __device__ std::byte* fast() { return memory() + kBytes; }

    __device__ void sync() { __syncthreads(); }
    __device__ void sync_all() {
#if __CUDA_ARCH__ >= 900
        if (blocks_ > 1) {
            asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                             : "memory");
            return;
        }
#endif
        __syncthreads();
    }

    // Of numbers, not of NaN.
    __device__ double max(double x) {
        x = max_of_warp(x);
        double* slots = lanes();
        if (lane() == 0) slots[warp()] = x;
        sync();
        return max_of_warp(slots[lane() < warps() ? lane() : 0]);
    }
    __device__ int min(int x) {
        x = __reduce_min_sync(kAll, x);
        auto* slots = reinterpret_cast<int*>(lanes());
        if (lane() == 0) slots[warp()] = x;
        sync();
        return __reduce_min_sync(kAll, slots[lane() < warps() ? lane() : 0]);
    }
    __device__ double* lanes() {
        turn_ ^= 1;
        return reinterpret_cast<double*>(memory()) + turn_ * 2 * kSumLanes;
    }
    // Each warp for itself. In each step both of a pair form the sum of the pair, which is the same whoever adds: the
    // tree of HostTeam, in every lane.
    __device__ double join(const double* lanes) const {
        double x = lanes[lane()];
        for (int step = kSumLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
        return x;
    }
    // The sum over kLanes neighbours.
    template <class Number>
    __device__ Number fold(Number x) const {
        for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
        return x;
    }

  private:
    static constexpr unsigned kAll = 0xffffffffu;

    __device__ static std::byte* memory() {
        extern __shared__ __align__(16) unsigned char shared[];
        return reinterpret_cast<std::byte*>(shared);
    }
    __device__ int lane() const { return rank() % 32; }
    __device__ int warp() const { return rank() / 32; }
    __device__ int warps() const { return size() / 32; }
    __device__ static double max_of_warp(double x) {
        for (int step = 16; step > 0; step /= 2) {
            const double other = __shfl_xor_sync(kAll, x, step);
            x = other > x ? other : x;
        }
        return x;
    }

    int blocks_, block_, team_;
    int turn_ = 0;
};

template <>
inline constexpr int kLanesHeld<DeviceTeam> = 1;

// How many blocks a multiprocessor should have room for, registers permitting; a body may say.
template <class Body>
consteval int resident_blocks() {
    if constexpr (requires { Body::kResident; }) return Body::kResident;
    return 1;
}

template <class Body>
__global__ void __launch_bounds__(kMostThreads, resident_blocks<Body>())
    run_body(const __grid_constant__ Body body, int blocks) {
    DeviceTeam team(blocks);
    body(team);
}

// One card and one stream of the caller's, for one solve. The card is the thread's current one as long as this lives.
class CudaDevice {
  public:
    CudaDevice(int index, cudaStream_t stream) : scope_(index), index_(index), stream_(stream) {
        multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount);
        shared_bytes_ = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
        has_clusters_ = attribute(cudaDevAttrClusterLaunch) != 0;
        has_pools_ = attribute(cudaDevAttrMemoryPoolsSupported) != 0;
        if (has_pools_) keep_freed_memory();
        cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
        CUDA_CHECK(cudaStreamIsCapturing(stream_, &capture));
        if (capture != cudaStreamCaptureStatusNone)
            throw InvalidArgument(
                "device: the stream is being captured for a CUDA graph, which would read host memory that "
                "is gone when it is replayed; select outside of the capture");
    }
    // In the order of the stream: after all that was queued.
    ~CudaDevice() {
        for (void* block : memory_) {
            const cudaError_t error = has_pools_ ? cudaFreeAsync(block, stream_) : cudaFree(block);
            if (error != cudaSuccess) cudaGetLastError();  // forgotten: a destructor does not throw
        }
    }
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    static constexpr bool is_emulated = false;
    std::size_t fast_bytes() const { return shared_bytes_ - DeviceTeam::kBytes; }  // of a block
    int multiprocessors() const { return multiprocessors_; }
    int rows_worth_a_block() const { return 256; }
    int most_blocks() const { return has_clusters_ ? 8 : 1; }  // of a team: what every card with clusters has
    std::size_t allocated() const { return allocated_; }
    std::string name() const { return name_of(index_); }

    // Uninitialised; freed with this object. Throws OutOfDeviceMemory.
    template <class T>
    T* allocate(std::size_t count) {
        return static_cast<T*>(take(count * sizeof(T)));
    }

    // The numbers may change once this returns.
    template <class T>
    void upload(T* to, const T* from, std::size_t count) {
        // The copies are of memory that surely is not pinned: of such memory CUDA makes a copy of its own before it
        // returns, while it would read pinned memory later. Up to 64 KB it does not wait for the stream first.
        constexpr std::size_t kPiece = 64 * 1024 / sizeof(T), kWorthPieces = 64 * kPiece;
        const std::size_t piece = count <= kWorthPieces ? kPiece : count;
        for (std::size_t first = 0; first < count; first += piece) {
            const std::vector<T> pageable(from + first, from + std::min(first + piece, count));
            CUDA_CHECK(cudaMemcpyAsync(to + first, pageable.data(), pageable.size() * sizeof(T), cudaMemcpyHostToDevice,
                                       stream_));
        }
        // Only a card that reads the host's memory like its own could do without that copy.
        if (attribute(cudaDevAttrPageableMemoryAccessUsesHostPageTables)) synchronize();
    }
    // Waits for the numbers, and for all that was queued before.
    template <class T>
    void download(T* to, const T* from, std::size_t count) {
        if (count > 0) CUDA_CHECK(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, stream_));
        synchronize();
    }
    void synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

    // Queues a kernel. Sizes beyond what the card has are cut down to it, fast memory excepted.
    template <class Body>
    void run(const Grid& grid, const Body& body) {
        static_assert(sizeof(Body) <= 4000, "what does not fit among a kernel's arguments goes into device memory");
        if (grid.teams <= 0) return;
        const int blocks = std::clamp(grid.blocks, 1, most_blocks());
        const int threads = std::clamp((grid.threads + 31) / 32 * 32, 32, kMostThreads);

        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
        cudaLaunchConfig_t launch = {};
        launch.gridDim = dim3(static_cast<unsigned>(grid.teams) * static_cast<unsigned>(blocks));
        launch.blockDim = dim3(static_cast<unsigned>(threads));
        launch.dynamicSmemBytes = DeviceTeam::kBytes + grid.fast_bytes;
        launch.stream = stream_;
        launch.attrs = &cluster;
        launch.numAttrs = blocks > 1 ? 1 : 0;
        // Always the same limit: another thread may be about to launch the same kernel with more.
        if (launch.dynamicSmemBytes > kSharedBytesUnasked)
            CUDA_CHECK(cudaFuncSetAttribute(run_body<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes_)));
        CUDA_CHECK(cudaLaunchKernelEx(&launch, run_body<Body>, body, blocks));
    }

    // cuBLAS for this stream; nullptr where there is none.
    Blas* blas() {
        if (!has_looked_for_blas_) {
            has_looked_for_blas_ = true;
            blas_ = Cublas::find(index_, attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio) <= kFastRatio);
            if (blas_) blas_->bind(stream_, allocate<std::byte>(Cublas::kWorkspaceBytes));
        }
        return blas_.get();
    }

  private:
    static constexpr std::size_t kSharedBytesUnasked = 48 * 1024;  // more must be asked for
    static constexpr std::size_t kKeptBytes = std::size_t{256} << 20;
    static constexpr int kFastRatio = 4;  // float32 to float64: 2 on cards for computing, 32 or 64 on others

    int attribute(cudaDeviceAttr which) const {
        int value = 0;
        CUDA_CHECK(cudaDeviceGetAttribute(&value, which, index_));
        return value;
    }

    // Memory that a solve frees stays in the card's pool, up to this much, for the next one (and for whoever takes
    // from this pool). Otherwise it goes back to the system whenever somebody waits for the card, and to map it anew
    // takes longer than a small solve.
    void keep_freed_memory() {
        cudaMemPool_t pool;
        CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, index_));
        std::uint64_t kept = 0;
        CUDA_CHECK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
        if (kept >= kKeptBytes) return;
        kept = kKeptBytes;
        CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
    }

    void* take(std::size_t bytes) {
        memory_.reserve(memory_.size() + 1);
        const std::size_t size = std::max<std::size_t>(bytes, 1);
        void* block = nullptr;
        const cudaError_t error = has_pools_ ? cudaMallocAsync(&block, size, stream_) : cudaMalloc(&block, size);
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            throw OutOfDeviceMemory(out_of_memory(bytes));
        }
        CUDA_CHECK(error);
        memory_.push_back(block);
        allocated_ += bytes;
        return block;
    }
    std::string out_of_memory(std::size_t bytes) const {
        const auto mebibytes = [](std::size_t count) { return std::to_string((count + (1 << 20) - 1) >> 20) + " MiB"; };
        std::string text = "CUDA device " + std::to_string(index_) + " (" + name() +
                           ") has too little free memory: " + mebibytes(bytes) + " were asked for, " +
                           mebibytes(allocated_ + bytes) + " in all by this solve";
        std::size_t free = 0, total = 0;
        if (cudaMemGetInfo(&free, &total) == cudaSuccess)
            text += "; " + mebibytes(free) + " of " + mebibytes(total) + " are free";
        return text +
               ". Free memory that others hold back (torch.cuda.empty_cache()), solve fewer problems at once or "
               "with fewer candidates, or solve on the CPU";
    }

    DeviceScope scope_;  // the last to go: freeing on a default stream means that of the current card
    int index_;
    cudaStream_t stream_;
    int multiprocessors_ = 0;
    std::size_t shared_bytes_ = 0;
    bool has_clusters_ = false, has_pools_ = false, has_looked_for_blas_ = false;
    std::vector<void*> memory_;
    std::size_t allocated_ = 0;
    std::unique_ptr<Cublas> blas_;
};

}  // namespace pysubmod::cuda
