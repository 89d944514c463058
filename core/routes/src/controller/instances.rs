//! Nodes' instances: which vSwitch each is in, and whether its source/destination check is off.
//!
//! These calls go to another API than the route tables and never wait for those.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loden_reconcile::{Backoff, Moment, Queue};

use super::notices::{About, Severity};
use super::pace::Pace;
use super::{Answer, Call, CallId, Controller, Deadline, Why};
use crate::model::{Instance, InstanceId, VSwitchId};
use crate::port::{Failure, FailureClass, INSTANCES_LIMIT};
use crate::tables::TableChoice;

const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(120));

/// What is known of a source/destination check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Unknown,
    On,
    Off,
}

#[derive(Debug)]
struct Known {
    vswitch: VSwitchId,
    /// Its primary network interface.
    eni: Arc<str>,
    check: Check,
}

#[derive(Debug)]
pub(super) struct Instances {
    flight: Option<(CallId, Call)>,
    known: BTreeMap<InstanceId, Known>,
    by_eni: BTreeMap<Arc<str>, InstanceId>,
    describe: Queue<InstanceId>,
    read: Queue<InstanceId>,
    switch_off: Queue<InstanceId>,
    pause: Moment,
    pace: Pace,
    failures: u32,
    pub(super) trouble: Option<Failure>,
}

impl Instances {
    pub(super) fn new() -> Self {
        Self {
            flight: None,
            known: BTreeMap::new(),
            by_eni: BTreeMap::new(),
            describe: Queue::new(RETRY),
            read: Queue::new(RETRY),
            switch_off: Queue::new(RETRY),
            pause: Moment::ZERO,
            pace: Pace::default(),
            failures: 0,
            trouble: None,
        }
    }

    /// Looks at an instance, or looks again: what was known of it holds until more is.
    pub(super) fn want(&mut self, now: Moment, instance: &InstanceId) {
        if self.describe.failures(instance) == 0 {
            self.describe.add(instance.clone(), now);
        }
    }

    pub(super) fn forget(&mut self, instance: &InstanceId) {
        if let Some(known) = self.known.remove(instance) {
            self.by_eni.remove(&known.eni);
        }
        self.describe.remove(instance);
        self.read.remove(instance);
        self.switch_off.remove(instance);
    }

    pub(super) fn audit(&mut self, now: Moment) {
        for instance in self.known.keys() {
            self.read.add(instance.clone(), now);
        }
    }

    pub(super) fn vswitch(&self, instance: &InstanceId) -> Option<&VSwitchId> {
        self.known.get(instance).map(|known| &known.vswitch)
    }

    pub(super) fn check(&self, instance: &InstanceId) -> Check {
        self.known.get(instance).map_or(Check::Unknown, |known| known.check)
    }

    /// Instances that wait to be asked about or changed.
    pub(super) fn queued(&self) -> usize {
        self.describe.len() + self.read.len() + self.switch_off.len()
    }

    pub(super) fn throttled_for(&self) -> Duration {
        self.pace.throttled_for()
    }

    fn eni(&self, instance: &InstanceId) -> Option<String> {
        self.known.get(instance).map(|known| known.eni.to_string())
    }

    fn by_eni(&self, eni: &str) -> Option<InstanceId> {
        self.by_eni.get(eni).cloned()
    }
}

impl Controller {
    pub(super) fn next_instance_call(
        &mut self,
        now: Moment,
        deadline: &mut Deadline,
    ) -> Option<(CallId, Call)> {
        if !self.settings.source_dest_check_off && !self.needs_vswitches() {
            return None;
        }
        if self.instances.flight.is_some() {
            return None;
        }
        if self.instances.pause > now {
            deadline.at(self.instances.pause, Why::Pause);
            return None;
        }
        if self.instances.pace.next() > now {
            deadline.at(self.instances.pace.next(), Why::Pace);
            return None;
        }
        let call = self.choose_instance_call(now);
        for queue in [&self.instances.describe, &self.instances.read, &self.instances.switch_off] {
            if let Some(due) = queue.next_due() {
                deadline.at(due, Why::Retry);
            }
        }
        let call = call?;
        self.instances.pace.called(now);
        let id = self.new_call();
        self.instances.flight = Some((id, call.clone()));
        Some((id, call))
    }

    /// Whether a node's vSwitch decides whether it is served.
    pub(super) fn needs_vswitches(&self) -> bool {
        self.settings.tables == TableChoice::Discover
            || self.lane.served.as_ref().is_some_and(|served| !served.is_complete())
    }

    fn choose_instance_call(&mut self, now: Moment) -> Option<Call> {
        let instances = &mut self.instances;
        let wanted = drain(&mut instances.describe, now);
        if !wanted.is_empty() {
            return Some(Call::DescribeInstances(wanted));
        }
        if !self.settings.source_dest_check_off {
            return None;
        }
        if let Some(instance) = instances.switch_off.pop(now) {
            return instances.eni(&instance).map(Call::SourceDestCheckOff);
        }
        let enis: Vec<String> =
            drain(&mut instances.read, now).iter().filter_map(|instance| instances.eni(instance)).collect();
        (!enis.is_empty()).then_some(Call::ReadSourceDestChecks(enis))
    }

    /// Takes an answer if it is one of these calls'.
    pub(super) fn instances_answered(&mut self, now: Moment, id: CallId, answer: &Answer) -> bool {
        let Some((_, call)) = self.instances.flight.take_if(|(flight, _)| *flight == id) else {
            return false;
        };
        match (call, answer) {
            (Call::DescribeInstances(asked), Answer::Instances(Ok(found))) => {
                self.instance_success();
                self.described(now, &asked, found);
            }
            (Call::ReadSourceDestChecks(asked), Answer::ChecksOn(Ok(on))) => {
                self.instance_success();
                let seen: Vec<(String, Check)> = asked
                    .into_iter()
                    .map(|eni| if on.contains(&eni) { (eni, Check::On) } else { (eni, Check::Off) })
                    .collect();
                self.checks_seen(now, &seen);
            }
            (Call::SourceDestCheckOff(eni), Answer::CheckOff(Ok(()))) => {
                self.instance_success();
                if let Some(instance) = self.instances.by_eni(&eni) {
                    self.instances.switch_off.succeeded(&instance);
                }
                self.checks_seen(now, &[(eni, Check::Off)]);
            }
            (
                call,
                Answer::Instances(Err(failure))
                | Answer::ChecksOn(Err(failure))
                | Answer::CheckOff(Err(failure)),
            ) => {
                self.instance_failure(now, call, failure);
            }
            (_, _) => {}
        }
        true
    }

    /// The instances of which something new became known about the source/destination check since this was last asked, and whether it is off.
    pub fn take_checks(&mut self) -> Vec<(InstanceId, bool)> {
        std::mem::take(&mut self.checks)
    }

    fn described(&mut self, now: Moment, asked: &[InstanceId], found: &[Instance]) {
        for instance in found {
            self.instances.describe.succeeded(&instance.id);
            let eni: Arc<str> = instance.primary_eni.as_str().into();
            let check = match self.instances.known.remove(&instance.id) {
                Some(known) if known.eni == eni => known.check,
                Some(known) => {
                    self.instances.by_eni.remove(&known.eni);
                    Check::Unknown
                }
                None => Check::Unknown,
            };
            self.instances.by_eni.insert(Arc::clone(&eni), instance.id.clone());
            let known = Known { vswitch: instance.vswitch.clone(), eni, check };
            self.instances.known.insert(instance.id.clone(), known);
            if self.settings.source_dest_check_off {
                self.instances.read.add(instance.id.clone(), now);
            }
        }
        for instance in
            asked.iter().filter(|id| !self.instances.known.contains_key(*id)).cloned().collect::<Vec<_>>()
        {
            self.instances.describe.failed(instance, now, self.next_call);
        }
        self.dirty_instances(now, asked);
        if found.iter().any(|instance| !self.lane.knows(&instance.vswitch)) && self.lane.served.is_some() {
            // A vSwitch that is younger than the list of tables.
            self.lane.glance();
        }
        self.choose_again(now);
    }

    fn checks_seen(&mut self, now: Moment, seen: &[(String, Check)]) {
        let mut changed = Vec::new();
        for (eni, check) in seen {
            let Some(instance) = self.instances.by_eni(eni) else { continue };
            if let Some(known) = self.instances.known.get_mut(&instance)
                && known.check != *check
            {
                known.check = *check;
                self.checks.push((instance.clone(), *check == Check::Off));
            }
            if *check == Check::On {
                self.instances.switch_off.add(instance.clone(), now);
            }
            changed.push(instance);
        }
        self.dirty_instances(now, &changed);
    }

    fn dirty_instances(&mut self, now: Moment, instances: &[InstanceId]) {
        let names: Vec<String> = instances
            .iter()
            .filter_map(|instance| self.on_instance.get(instance))
            .flatten()
            .cloned()
            .collect();
        self.dirty(now, names);
    }

    fn instance_success(&mut self) {
        self.instances.failures = 0;
        self.instances.trouble = None;
        self.instances.pace.succeeded();
        self.notices.over(&About::Controller, "CloudAccessDenied", "ecs");
    }

    fn instance_failure(&mut self, now: Moment, call: Call, failure: &Failure) {
        let jitter = self.next_call;
        match call {
            Call::DescribeInstances(asked) => {
                asked.into_iter().for_each(|instance| self.instances.describe.add(instance, now))
            }
            Call::ReadSourceDestChecks(enis) => {
                let instances: Vec<InstanceId> =
                    enis.iter().filter_map(|eni| self.instances.by_eni(eni)).collect();
                instances.into_iter().for_each(|instance| self.instances.read.add(instance, now));
            }
            Call::SourceDestCheckOff(eni) => {
                if let Some(instance) = self.instances.by_eni(&eni) {
                    self.instances.switch_off.failed(instance.clone(), now, jitter);
                    if self.instances.switch_off.failures(&instance) == 3 {
                        self.notices.tell(
                            About::Controller,
                            Severity::Warning,
                            "SourceDestCheckFailed",
                            format!("cannot switch the source/destination check of {eni} ({instance}) off: {failure}"),
                        );
                    }
                    if failure.class == FailureClass::Busy {
                        return;
                    }
                }
            }
            _ => {}
        }
        self.instances.failures = self.instances.failures.saturating_add(1);
        let rest = super::lane::pause(failure, self.instances.failures, jitter);
        self.instances.pause = now + rest;
        if failure.class == FailureClass::Throttled {
            self.instances.pace.throttled(rest);
        }
        self.instances.trouble = Some(failure.clone());
        if failure.class == FailureClass::Denied {
            self.notices.stand(About::Controller, "CloudAccessDenied", "ecs", || {
                format!("the ECS API refuses the controller's credentials: {failure}; it needs ecs:DescribeInstances, ecs:DescribeNetworkInterfaces and ecs:ModifyNetworkInterfaceAttribute, or --skip-disable-source-dest-check")
            });
        }
    }
}

fn drain(queue: &mut Queue<InstanceId>, now: Moment) -> Vec<InstanceId> {
    let mut taken = Vec::new();
    while taken.len() < INSTANCES_LIMIT
        && let Some(instance) = queue.pop(now)
    {
        taken.push(instance);
    }
    taken
}
