//! Has the linker write a build ID, by which the binary recognises copies of itself (see `shell/cni/src/build_id.rs`). Not every
//! platform's compiler asks for one by itself.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--build-id=sha1");
}
