#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = loden_hostile::cloud(data) {
        panic!("{broken}");
    }
});
