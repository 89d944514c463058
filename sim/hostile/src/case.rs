//! Inputs as text, so that seeds can be read and written by people.
//!
//! ```text
//! flannel
//! CNI_COMMAND=ADD,DEL
//! CNI_CONTAINERID=c1
//! --- /run/flannel/subnet.env
//! FLANNEL_MTU=1450
//! --- stdin
//! {"name":"n"}
//! ```
//!
//! First the program's name, then variables, then sections: files to be there before, and standard input.

/// One parsed input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// The name that the program is called by.
    pub program: String,
    /// Variables of the environment, in order; a later one hides an earlier one of its name.
    pub variables: Vec<(String, String)>,
    /// Files by absolute path.
    pub files: Vec<(String, Vec<u8>)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

const SECTION: &str = "--- ";

impl Case {
    /// Reads an input. Everything can be read; what makes no sense is left out.
    #[must_use]
    pub fn parse(data: &[u8]) -> Self {
        let mut case = Self::default();
        let mut section: Option<(String, Vec<u8>)> = None;
        for (number, line) in data.split(|byte| *byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(line);
            if let Some(name) = text.strip_prefix(SECTION) {
                case.close(section.replace((name.to_owned(), Vec::new())));
            } else if let Some((_, content)) = &mut section {
                content.extend_from_slice(line);
                content.push(b'\n');
            } else if number == 0 {
                case.program = text.into_owned();
            } else if let Some((name, value)) = text.split_once('=').filter(|_| !line.contains(&0)) {
                // No environment can hold a zero byte.
                case.variables.push((name.to_owned(), value.to_owned()));
            }
        }
        case.close(section);
        case
    }

    fn close(&mut self, section: Option<(String, Vec<u8>)>) {
        let Some((name, mut content)) = section else { return };
        // The line's end before the next section belongs to the section's mark.
        content.pop();
        if name == "stdin" {
            self.stdin = content;
        } else if name.starts_with('/') {
            self.files.push((name, content));
        }
    }

    /// A variable's value, empty when there is none.
    #[must_use]
    pub fn variable(&self, name: &str) -> &str {
        self.variables.iter().rev().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_program_variables_files_and_standard_input() {
        let case = Case::parse(b"x\nA=1\nA=2=3\nB=\0\n?\n--- /f\n\nb\n--- stdin\n{}\xff\n--- g\nx");
        assert_eq!(case.program, "x");
        assert_eq!(case.variable("A"), "2=3");
        assert_eq!(case.variable("B"), "");
        assert_eq!(case.files, [("/f".to_owned(), b"\nb".to_vec())]);
        assert_eq!(case.stdin, b"{}\xff");
        assert_eq!(Case::parse(b""), Case::default());
    }
}
