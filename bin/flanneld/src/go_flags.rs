//! Command lines as Go's `flag` package reads them.
//!
//! `-x` and `--x` are the same; a value follows after `=` or as the next word; a boolean takes no next word; reading stops
//! at the first word that is no flag, or after `--`. Manifests written for Go's flanneld rely on each of these.

use std::collections::BTreeMap;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `-x`, `-x=true`, `-x=false`.
    Bool,
    /// Any text; given again, the last one counts.
    Text,
    /// Any text, may be given several times.
    List,
    /// A whole number.
    Int,
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// As text; empty for lists.
    pub(crate) default: &'static str,
    /// What stands for the value in the usage.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
}

/// The values of all flags, each checked against its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Values {
    given: BTreeMap<&'static str, Vec<String>>,
    defaults: BTreeMap<&'static str, &'static str>,
    /// Environment variables that were passed over because their value cannot be read.
    pub(crate) ignored: Vec<String>,
}

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Values(Values),
    Help,
}

/// Reads `args` (without the program's name), then fills in what was not given from `environment`
/// (`FLANNELD_` + the name in upper case, `-` and `.` as `_`; empty values do not count).
pub(crate) fn parse(
    flags: &[Flag],
    args: &[String],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, String> {
    let mut values = Values {
        defaults: flags.iter().map(|flag| (flag.name, flag.default)).collect(),
        ..Values::default()
    };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let Some(rest) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else { break };
        let rest = match rest.strip_prefix('-') {
            Some("") => break,
            Some(rest) => rest,
            None => rest,
        };
        if rest.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {word}"));
        }
        let (name, inline) =
            rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value.to_owned())));
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            if matches!(name, "h" | "help") {
                return Ok(Parsed::Help);
            }
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let value = match (flag.kind, inline) {
            (_, Some(value)) => value,
            (Kind::Bool, None) => "true".to_owned(),
            (_, None) => words.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        values.put(flag, value)?;
    }
    for flag in flags {
        let variable = format!("FLANNELD_{}", flag.name.to_ascii_uppercase().replace(['-', '.'], "_"));
        if values.given.contains_key(flag.name) {
            continue;
        }
        if let Some(value) = environment(&variable).filter(|value| !value.is_empty())
            && let Err(error) = values.put(flag, value)
        {
            values.ignored.push(format!("{variable}: {error}"));
        }
    }
    Ok(Parsed::Values(values))
}

impl Values {
    fn put(&mut self, flag: &Flag, value: String) -> Result<(), String> {
        let broken = |why: &str| Err(format!("invalid value {value:?} for flag -{}: {why}", flag.name));
        match flag.kind {
            Kind::Bool if boolean(&value).is_none() => return broken("parse error, write true or false"),
            Kind::Int if integer(&value).is_none() => return broken("parse error, write a whole number"),
            _ => {}
        }
        let all = self.given.entry(flag.name).or_default();
        if flag.kind != Kind::List {
            all.clear();
        }
        all.push(value);
        Ok(())
    }

    /// The value of a text flag.
    pub(crate) fn text(&self, name: &str) -> &str {
        let given = self.given.get(name).and_then(|all| all.last()).map(String::as_str);
        given.or_else(|| self.defaults.get(name).copied()).unwrap_or_default()
    }

    /// The value of a text flag, `None` if empty.
    pub(crate) fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        boolean(self.text(name)).unwrap_or_default()
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        integer(self.text(name)).unwrap_or_default()
    }

    pub(crate) fn list(&self, name: &str) -> &[String] {
        self.given.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the flag was given a value other than its default.
    pub(crate) fn is_changed(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|all| {
            let default = self.defaults.get(name).copied().unwrap_or_default();
            all.iter()
                .any(|value| value != default && boolean(value).is_none_or(|b| boolean(default) != Some(b)))
        })
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)` without underscores: decimal, 0x, 0o, 0b, and a leading 0 for octal.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, lower.get(2..)?),
        [b'0', b'o', ..] => (8, lower.get(2..)?),
        [b'0', b'b', ..] => (2, lower.get(2..)?),
        [b'0', _, ..] => (8, lower.get(1..)?),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

#[cfg(test)]
mod tests {
    use super::{Flag, Kind, Parsed, Values, integer, parse};

    const FLAGS: [Flag; 4] = [
        Flag { name: "ip-masq", kind: Kind::Bool, default: "false", value: "", help: "" },
        Flag { name: "subnet-file", kind: Kind::Text, default: "/run/x", value: "PATH", help: "" },
        Flag { name: "iface", kind: Kind::List, default: "", value: "NAME", help: "" },
        Flag { name: "v", kind: Kind::Int, default: "0", value: "N", help: "" },
    ];

    fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Values, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        match parse(&FLAGS, &args, lookup)? {
            Parsed::Values(values) => Ok(values),
            Parsed::Help => Err("help".to_owned()),
        }
    }

    #[test]
    fn dashes_equal_signs_and_next_words_are_read_as_go_reads_them() {
        let values =
            read(&["-ip-masq", "--subnet-file=/a=b", "-iface", "eth0", "--iface=eth1", "-v", "10"], &[])
                .unwrap();
        assert!(values.flag("ip-masq"));
        assert_eq!(values.text("subnet-file"), "/a=b");
        assert_eq!(values.list("iface"), ["eth0", "eth1"]);
        assert_eq!(values.int("v"), 10);
    }

    #[test]
    fn a_boolean_takes_no_next_word_and_reading_stops_at_one() {
        let values = read(&["-ip-masq", "false", "-v", "3"], &[]).unwrap();
        assert!(values.flag("ip-masq"));
        assert_eq!(values.int("v"), 0);
        for (text, expected) in [("T", true), ("0", false), ("FALSE", false), ("True", true)] {
            assert_eq!(read(&[&format!("-ip-masq={text}")], &[]).unwrap().flag("ip-masq"), expected);
        }
        assert_eq!(read(&["--", "-v", "3"], &[]).unwrap().int("v"), 0);
        assert_eq!(read(&["-", "-v", "3"], &[]).unwrap().int("v"), 0);
    }

    #[test]
    fn mistakes_are_said_in_gos_words() {
        for (args, text) in [
            (vec!["-nope"], "flag provided but not defined: -nope"),
            (vec!["---v"], "bad flag syntax: ---v"),
            (vec!["-=3"], "bad flag syntax: -=3"),
            (vec!["-v"], "flag needs an argument: -v"),
        ] {
            assert_eq!(read(&args, &[]).unwrap_err(), text);
        }
        assert!(
            read(&["-v=ten"], &[]).unwrap_err().starts_with("invalid value \"ten\" for flag -v: parse error")
        );
        assert!(read(&["-ip-masq=yes"], &[]).is_err());
        assert_eq!(read(&["-help"], &[]).unwrap_err(), "help");
    }

    #[test]
    fn the_environment_fills_what_was_not_given() {
        let env = [
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_SUBNET_FILE", ""),
            ("FLANNELD_IFACE", "a,b"),
            ("FLANNELD_V", "x"),
        ];
        let values = read(&[], &env).unwrap();
        assert!(values.flag("ip-masq"));
        assert_eq!(values.text("subnet-file"), "/run/x");
        assert_eq!(values.list("iface"), ["a,b"], "a variable is one element");
        assert_eq!(values.ignored.len(), 1);
        assert!(!read(&["-ip-masq=0"], &env).unwrap().flag("ip-masq"), "the command line wins");
    }

    #[test]
    fn changed_means_another_value_not_another_spelling() {
        let values = read(&["-ip-masq=F", "-subnet-file", "/run/x", "-v=0"], &[]).unwrap();
        assert!(
            !values.is_changed("ip-masq") && !values.is_changed("subnet-file") && !values.is_changed("v")
        );
        assert!(read(&["-v=1"], &[]).unwrap().is_changed("v"));
    }

    #[test]
    fn integers_follow_strconv() {
        for (text, value) in [
            ("10", Some(10)),
            ("-1", Some(-1)),
            ("0x1f", Some(31)),
            ("010", Some(8)),
            ("0", Some(0)),
            ("", None),
            ("--1", None),
            ("1.5", None),
        ] {
            assert_eq!(integer(text), value, "{text:?}");
        }
    }
}
