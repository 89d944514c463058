//! The fuzz target that runs whole plugins, with edited seeds, in a sandbox.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use loden_hostile::sandbox;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::{edited, seeds};

const CASES: u32 = 300;

#[test]
fn plugins_answer_and_stay_in_their_directories() {
    if !sandbox::is_inside() {
        let mut command = sandbox::command(&std::env::current_exe().unwrap());
        command.args(["--exact", "plugins_answer_and_stay_in_their_directories", "--nocapture"]);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let (seeds, edits) = (seeds(&["plugin"]), edited(&["plugin"]));
    sandbox::enter(&[]).unwrap();
    for seed in seeds {
        assert_eq!(loden_hostile::plugin(&seed), Ok(()), "{}", String::from_utf8_lossy(&seed));
    }
    // A failure is told by its input; there is no file system to keep it in.
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&edits, |data| {
            prop_assert_eq!(loden_hostile::plugin(&data), Ok(()), "{}", String::from_utf8_lossy(&data));
            Ok(())
        })
        .unwrap();
}
