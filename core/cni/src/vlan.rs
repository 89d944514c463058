//! The VLANs of a bridge's port as a configuration says them: one untagged, many tagged.

use crate::conf::load_error;
use crate::error::Error;
use crate::json::Fields;

/// The last VLAN identifier; 4095 is reserved.
const LAST: i64 = 4094;
/// The VLAN of frames without a tag where only tagged ones are configured, the kernel's own default.
const NATIVE: u16 = 1;

/// What VLANs a port takes part in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortVlans {
    /// `vlan`: what is behind the port knows nothing of VLANs and is in this one.
    pub access: Option<u16>,
    /// `vlanTrunk`: tagged ones, as ranges from first to last, in order and apart.
    pub tagged: Vec<(u16, u16)>,
    /// `preserveDefaultVlan`: the port stays in the VLAN that the bridge gave it.
    pub keeps_default: bool,
}

impl PortVlans {
    /// Reads `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
    ///
    /// # Errors
    /// A key of the wrong type, an identifier out of range, or half a range.
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, Error> {
        let vlan = fields.integer("vlan").map_err(load_error)?.unwrap_or_default();
        let access = u16::try_from(vlan).ok().filter(|_| vlan <= LAST).ok_or_else(|| {
            Error::internal(format!("invalid VLAN ID {vlan} (must be between 0 and {LAST})"))
        })?;
        let mut ranges = Vec::new();
        for item in fields.objects("vlanTrunk").map_err(load_error)? {
            ranges.extend(trunk(&item)?);
        }
        let keeps_default = fields.bool("preserveDefaultVlan").map_err(load_error)?.unwrap_or_default();
        Ok(Self { access: Some(access).filter(|&id| id != 0), tagged: joined(ranges), keeps_default })
    }

    /// Whether nothing is said, so that the bridge need not know VLANs.
    pub fn is_empty(&self) -> bool {
        self.access.is_none() && self.tagged.is_empty()
    }

    /// Only the untagged VLAN, for the port of its gateway.
    #[must_use]
    pub fn access_only(&self) -> Self {
        Self { tagged: Vec::new(), ..self.clone() }
    }

    /// The VLAN of frames without a tag.
    pub fn untagged(&self) -> Option<u16> {
        self.access.or_else(|| (!self.tagged.is_empty()).then_some(NATIVE))
    }

    /// The tagged ranges without the untagged VLAN, which would otherwise lose its frames without a tag.
    pub fn tagged_apart(&self) -> Vec<(u16, u16)> {
        let Some(hole) = self.untagged() else { return self.tagged.clone() };
        let mut apart = Vec::new();
        for &(first, last) in &self.tagged {
            if (first..=last).contains(&hole) {
                apart.extend((first < hole).then(|| (first, hole.saturating_sub(1))));
                apart.extend((hole < last).then(|| (hole.saturating_add(1), last)));
            } else {
                apart.push((first, last));
            }
        }
        apart
    }

    /// Whether the port takes part in this VLAN.
    pub fn has(&self, id: u16) -> bool {
        self.untagged() == Some(id) || self.tagged.iter().any(|&(first, last)| (first..=last).contains(&id))
    }
}

/// One entry of `vlanTrunk`: a range, a single identifier, or both.
fn trunk(item: &Fields<'_>) -> Result<Vec<(u16, u16)>, Error> {
    let read = |key: &str| -> Result<Option<u16>, Error> {
        let Some(id) = item.integer(key).map_err(load_error)? else { return Ok(None) };
        let in_range = u16::try_from(id).ok().filter(|_| (1..=LAST).contains(&id));
        in_range.map(Some).ok_or_else(|| Error::internal(format!("incorrect trunk {key} parameter")))
    };
    let mut ranges = Vec::new();
    match (read("minID")?, read("maxID")?) {
        (Some(first), Some(last)) if first > last => {
            return Err(Error::internal("minID is greater than maxID in trunk parameter"));
        }
        (Some(first), Some(last)) => ranges.push((first, last)),
        (None, Some(_)) => {
            return Err(Error::internal(
                "minID and maxID should be configured simultaneously, minID is missing",
            ));
        }
        (Some(_), None) => {
            return Err(Error::internal(
                "minID and maxID should be configured simultaneously, maxID is missing",
            ));
        }
        (None, None) => {}
    }
    ranges.extend(read("id")?.map(|id| (id, id)));
    Ok(ranges)
}

/// The same identifiers as ranges in order that neither overlap nor touch.
fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::Json;

    fn parse(text: &str) -> Result<PortVlans, Error> {
        let json = Json::parse(text.as_bytes()).unwrap();
        PortVlans::parse(&Fields::of(&json, "").unwrap())
    }

    #[test]
    fn trunks_are_ranges_and_single_ones() {
        let vlans = parse(r#"{"vlanTrunk":[{"minID":10,"maxID":20},{"id":21},{"id":5,"minID":12,"maxID":30},{"id":100},{}]}"#)
            .unwrap();
        assert_eq!(vlans.tagged, [(5, 5), (10, 30), (100, 100)]);
        assert_eq!(vlans.untagged(), Some(1), "frames without a tag stay in the native VLAN");
        assert!(vlans.has(1) && vlans.has(17) && !vlans.has(31));
        assert!(parse("{}").unwrap().is_empty());
        assert!(parse(r#"{"vlan":0,"vlanTrunk":[]}"#).unwrap().is_empty());
        let both =
            parse(r#"{"vlan":7,"vlanTrunk":[{"minID":6,"maxID":8}],"preserveDefaultVlan":true}"#).unwrap();
        assert_eq!((both.untagged(), both.tagged_apart()), (Some(7), vec![(6, 6), (8, 8)]));
        assert!(both.keeps_default && both.access_only().tagged.is_empty());
    }

    #[test]
    fn refusals() {
        for (text, message) in [
            (r#"{"vlan":4095}"#, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
            (r#"{"vlan":-1}"#, "invalid VLAN ID -1 (must be between 0 and 4094)"),
            (r#"{"vlanTrunk":[{"id":0}]}"#, "incorrect trunk id parameter"),
            (r#"{"vlanTrunk":[{"minID":0,"maxID":5}]}"#, "incorrect trunk minID parameter"),
            (r#"{"vlanTrunk":[{"minID":1,"maxID":4095}]}"#, "incorrect trunk maxID parameter"),
            (r#"{"vlanTrunk":[{"minID":9,"maxID":5}]}"#, "minID is greater than maxID in trunk parameter"),
            (
                r#"{"vlanTrunk":[{"maxID":5}]}"#,
                "minID and maxID should be configured simultaneously, minID is missing",
            ),
            (
                r#"{"vlanTrunk":[{"minID":5}]}"#,
                "minID and maxID should be configured simultaneously, maxID is missing",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().message, message, "{text}");
        }
        assert!(parse(r#"{"vlanTrunk":{}}"#).unwrap_err().message.contains("`vlanTrunk`: expected a list"));
    }

    proptest! {
        #[test]
        fn joining_loses_and_adds_nothing(ranges in prop::collection::vec((1..60_u16, 0..9_u16), 0..12), hole in 1..70_u16) {
            let ranges: Vec<(u16, u16)> = ranges.into_iter().map(|(first, more)| (first, first + more)).collect();
            let vlans = PortVlans { access: Some(hole), tagged: joined(ranges.clone()), keeps_default: false };
            for id in 1..80 {
                let wanted = ranges.iter().any(|(first, last)| (*first..=*last).contains(&id));
                prop_assert_eq!(vlans.has(id), wanted || id == hole);
                let tagged = vlans.tagged_apart().iter().filter(|(first, last)| (*first..=*last).contains(&id)).count();
                prop_assert_eq!(tagged, usize::from(wanted && id != hole));
            }
        }
    }
}
