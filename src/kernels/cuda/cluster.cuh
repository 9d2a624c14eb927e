// Clusters of blocks of threads (sm_90), which reach each other's shared memory.
#ifndef WALSH_KERNELS_CUDA_CLUSTER_CUH
#define WALSH_KERNELS_CUDA_CLUSTER_CUH

#include "common.cuh"

constexpr int CLUSTER_MOST = 8; // blocks of a cluster; more are not portable

static __device__ __forceinline__ int cluster_rank()
{
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return (int)rank;
}
// Both together are a barrier of all threads of the cluster; what was written before the arrival is there behind the wait.
static __device__ __forceinline__ void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
static __device__ __forceinline__ void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The same place in the shared memory of another block.
template <typename T> static __device__ __forceinline__ T *at_rank(T *mine, int rank)
{
    uint64_t there = reinterpret_cast<uint64_t>(mine);
#if __CUDA_ARCH__ >= 900
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(there), "r"(rank));
#endif
    return reinterpret_cast<T *>(there);
}

// Blocks of threads in clusters of `blocks`, of which the grid's x is a multiple. May start early, as by launch_early.
template <typename... Parameters, typename... Arguments>
static inline void launch_cluster(cudaStream_t stream, void (*kernel)(Parameters...), unsigned blocks, dim3 grid, unsigned threads,
                                  size_t shared, Arguments &&...arguments)
{
    if (shared > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    cudaLaunchAttribute attribute[2] = {};
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    attribute[1].id = cudaLaunchAttributeClusterDimension;
    attribute[1].val.clusterDim.x = blocks, attribute[1].val.clusterDim.y = attribute[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = 2;
    cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Whether the device has clusters.
static inline bool has_clusters(void)
{
    int major = 0, device = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

#endif
