#![no_main]

use std::path::PathBuf;

use loden_hostile::sandbox;

/// Enters a sandbox that has the directories of inputs and findings in it.
fn enter() {
    if !sandbox::is_inside() {
        let Err(error) = sandbox::start_again();
        panic!("cannot start in namespaces of its own: {error}");
    }
    let words = std::env::args().skip(1);
    let paths = words.map(|word| PathBuf::from(word.strip_prefix("-artifact_prefix=").unwrap_or(&word)));
    let open: Vec<PathBuf> = paths.filter(|path| path.is_absolute() && path.is_dir()).collect();
    if let Err(error) = sandbox::enter(&open) {
        panic!("{error}");
    }
}

libfuzzer_sys::fuzz_target!(init: enter(), |data: &[u8]| {
    if let Err(broken) = loden_hostile::plugin(data) {
        panic!("{broken}");
    }
});
