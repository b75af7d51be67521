//! Hypervisor backends, guest kernels and initramfs.
