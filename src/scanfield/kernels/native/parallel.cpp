#include "parallel.h"

namespace scanfield {
void (*gomp_parallel)(Body, void*, unsigned, unsigned) = nullptr;
}

// Address of GOMP_parallel in the OpenMP library that torch loaded, or null.
SCANFIELD_API void scanfield_use_openmp(void* parallel) {
    scanfield::gomp_parallel = reinterpret_cast<void (*)(scanfield::Body, void*, unsigned, unsigned)>(parallel);
}
