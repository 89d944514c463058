//! The CNI plugins: what each does to the kernel and to the disk.
