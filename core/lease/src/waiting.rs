//! What flanneld waits for, for whoever asks the node why there is no subnet file yet.
//!
//! A file beside the subnet file, one line of text for people. It is there from the moment flanneld knows what it waits for until all is
//! right; its age is how long that has been. Nothing depends on it: whoever reads it shows it and goes on.

use std::path::{Path, PathBuf};

/// So much of a reason is shown.
const LONGEST: usize = 500;

/// The file's place, given the subnet file's: `/run/flannel/subnet.env.waiting`.
#[must_use]
pub fn waiting_file(subnet_file: &Path) -> PathBuf {
    let mut path = subnet_file.as_os_str().to_owned();
    path.push(".waiting");
    path.into()
}

/// The file's text.
#[must_use]
pub fn render_waiting(reason: &str) -> String {
    format!("{}\n", one_line(reason))
}

/// The reason that a file gives; `None` if it says nothing.
#[must_use]
pub fn read_waiting(text: &str) -> Option<String> {
    Some(one_line(text)).filter(|reason| !reason.is_empty())
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_of_text() {
        assert_eq!(
            waiting_file(Path::new("/run/flannel/subnet.env")),
            Path::new("/run/flannel/subnet.env.waiting")
        );
        assert_eq!(render_waiting("node a:\n no podCIDR\x1b[0m yet"), "node a: no podCIDR [0m yet\n");
        assert_eq!(read_waiting(&render_waiting("x y")).as_deref(), Some("x y"));
        assert_eq!(read_waiting("\n \n"), None);
        assert_eq!(read_waiting(&"x".repeat(9000)).map(|text| text.len()), Some(LONGEST));
    }
}
