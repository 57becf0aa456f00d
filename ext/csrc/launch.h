// What every kernel launch needs.
#pragma once

#include <cuda_runtime.h>

constexpr int kMaxGridY = 65535;  // and of z

// Makes a device current, and the one that was current again at the end.
class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        cudaGetDevice(&before_);
        if (before_ != device) cudaSetDevice(device);
        device_ = device;
    }
    ~DeviceGuard() {
        if (before_ != device_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int before_ = 0;
    int device_ = 0;
};
