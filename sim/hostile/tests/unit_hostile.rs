//! The fuzz targets that need no sandbox, with edited seeds.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use proptest::prelude::*;
use support::edited;

fn keeps(promises: fn(&[u8]) -> loden_hostile::Verdict, data: &[u8]) -> Result<(), TestCaseError> {
    promises(data)
        .map_err(|broken| TestCaseError::fail(format!("{broken}\n{}", String::from_utf8_lossy(data))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn configurations_are_read_or_refused(data in edited(&["configuration", "plugin"])) {
        keeps(loden_hostile::configuration, &data)?;
    }

    #[test]
    fn files_are_read_or_refused(data in edited(&["files"])) {
        keeps(loden_hostile::files, &data)?;
    }

    #[test]
    fn anything_at_all_is_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        keeps(loden_hostile::configuration, &data)?;
        keeps(loden_hostile::files, &data)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn clouds_answer_and_stay_sound(data in edited(&["cloud"])) {
        keeps(loden_hostile::cloud, &data)?;
    }

    #[test]
    fn clouds_answer_anything_at_all(kind in prop::sample::select(&b"><?+!@="[..]), data in prop::collection::vec(any::<u8>(), 0..300)) {
        keeps(loden_hostile::cloud, &[&[kind], &data[..]].concat())?;
    }
}

#[test]
fn clouds_stand_the_seeds() {
    for seed in support::seeds(&["cloud"]) {
        assert_eq!(loden_hostile::cloud(&seed), Ok(()), "{}", String::from_utf8_lossy(&seed));
    }
}
