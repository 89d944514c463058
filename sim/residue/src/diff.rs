//! What two pictures differ in.

use std::collections::BTreeMap;
use std::fmt;

use crate::Section;

/// The lines that came and went, by section. Prints one line each, `+` for what came and `-` for what went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    came: Vec<(Section, String)>,
    went: Vec<(Section, String)>,
}

impl Diff {
    pub(crate) fn between(
        before: &BTreeMap<Section, Vec<String>>,
        after: &BTreeMap<Section, Vec<String>>,
    ) -> Self {
        Self { came: missing_in(before, after), went: missing_in(after, before) }
    }

    /// Whether the pictures are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.came.is_empty() && self.went.is_empty()
    }

    /// What is in the later picture only.
    #[must_use]
    pub fn came(&self) -> &[(Section, String)] {
        &self.came
    }

    /// What is in the earlier picture only.
    #[must_use]
    pub fn went(&self) -> &[(Section, String)] {
        &self.went
    }
}

/// The lines of `whole` that `part` has not, or has fewer times.
fn missing_in(
    part: &BTreeMap<Section, Vec<String>>,
    whole: &BTreeMap<Section, Vec<String>>,
) -> Vec<(Section, String)> {
    let mut missing = Vec::new();
    for (section, lines) in whole {
        let mut there: BTreeMap<&str, usize> = BTreeMap::new();
        for line in part.get(section).into_iter().flatten() {
            *there.entry(line).or_default() += 1;
        }
        for line in lines {
            match there.get_mut(line.as_str()) {
                Some(count) if *count > 0 => *count -= 1,
                _ => missing.push((*section, line.clone())),
            }
        }
    }
    missing
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = |sign: char, lines: &[(Section, String)]| {
            lines.iter().map(|(section, line)| (*section, sign, line.clone())).collect::<Vec<_>>()
        };
        let mut all = signed('+', &self.came);
        all.extend(signed('-', &self.went));
        all.sort();
        if all.is_empty() {
            return write!(f, "(no difference)");
        }
        for (n, (section, sign, line)) in all.iter().enumerate() {
            let end = if n + 1 == all.len() { "" } else { "\n" };
            write!(f, "{sign} {section:?}: {line}{end}")?;
        }
        Ok(())
    }
}
