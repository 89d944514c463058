//! An emulator of the part of the Kubernetes API that Loden needs.
