//! The emulated cloud with a clock and listeners.
//!
//! [`Emulator`] makes it; [`Handle`] is what everybody holds: it is cheap to clone, safe to use from any thread, and lets the model's
//! own clock run wherever it serves.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::http;
use crate::model::{AdminError, Cloud, Fault, StateError};
use crate::snapshot::Snapshot;
use crate::topology::{
    AccessKeySpec, EntrySpec, Ingress, InstanceSpec, RouteTableSpec, Settings, Topology, VSwitchSpec, VpcSpec,
};

/// Where the emulator takes the time from.
type Clock = dyn Fn() -> OffsetDateTime + Send + Sync;

/// Makes an emulated cloud.
#[derive(Debug)]
pub struct Emulator {
    handle: Handle,
}

impl Emulator {
    /// An emulator with these contents, on the system's clock, with IDs and secrets that differ from run to run.
    ///
    /// # Errors
    /// The contents contradict themselves.
    pub fn new(topology: &Topology, settings: Settings) -> Result<Self, AdminError> {
        Self::with_clock(topology, settings, RandomState::new().hash_one("seed"), OffsetDateTime::now_utc)
    }

    /// The same with a clock and a seed of one's own.
    ///
    /// # Errors
    /// The contents contradict themselves.
    pub fn with_clock(
        topology: &Topology,
        settings: Settings,
        seed: u64,
        clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static,
    ) -> Result<Self, AdminError> {
        Ok(Self::of(Cloud::new(topology, settings, seed, clock())?, clock))
    }

    /// An emulator that goes on with a state that [`Handle::save`] gave, on the system's clock.
    ///
    /// # Errors
    /// The state is of another form or contradicts itself.
    pub fn restore(state: serde_json::Value) -> Result<Self, StateError> {
        Ok(Self::of(Cloud::restore(state)?, OffsetDateTime::now_utc))
    }

    fn of(cloud: Cloud, clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static) -> Self {
        let (revision, _) = watch::channel(cloud.revision());
        let shared =
            Shared { cloud: Mutex::new(cloud), clock: Box::new(clock), revision, deadline: Notify::new() };
        Self { handle: Handle { shared: Arc::new(shared) } }
    }

    /// A handle to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

struct Shared {
    cloud: Mutex<Cloud>,
    clock: Box<Clock>,
    revision: watch::Sender<u64>,
    /// Told when the next deadline may have moved.
    deadline: Notify,
}

/// A running emulator, held from wherever it is needed.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("revision", &*self.shared.revision.borrow()).finish_non_exhaustive()
    }
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Cloud> {
        // The model does not panic; if it did, its state would still be the last whole one of each step.
        self.shared.cloud.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act` on the model as of now, and wakes whoever waits for what it changed.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Cloud, OffsetDateTime) -> T) -> T {
        let now = (self.shared.clock)();
        let mut cloud = self.lock();
        cloud.advance(now);
        let result = act(&mut cloud, now);
        let revision = cloud.revision();
        drop(cloud);
        self.shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        self.shared.deadline.notify_waiters();
        result
    }

    /// Serves the VPC and ECS API, for as long as the future is polled.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve_api(&self, listener: TcpListener) -> std::io::Result<()> {
        tokio::select! {
            () = http::serve_api(self.clone(), listener) => Ok(()),
            () = self.keep_time() => Ok(()),
        }
    }

    /// Serves the VPC and ECS API on one connection, whatever it is made of, until it closes.
    pub async fn serve_api_on(&self, connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        http::serve_connection(self.clone(), connection).await;
    }

    /// Serves the metadata service, for as long as the future is polled. The instance is the one with the peer's address, unless
    /// the settings name one.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve_metadata(&self, listener: TcpListener) -> std::io::Result<()> {
        self.serve(listener, http::metadata(self.clone())).await
    }

    /// Serves the control path (see [`crate::control`]), for as long as the future is polled. Nothing there is authenticated.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve_control(&self, listener: TcpListener) -> std::io::Result<()> {
        self.serve(listener, crate::control::router(self.clone())).await
    }

    async fn serve(&self, listener: TcpListener, router: axum::Router) -> std::io::Result<()> {
        let service = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
        tokio::select! {
            result = axum::serve(listener, service) => result,
            () = self.keep_time() => Ok(()),
        }
    }

    /// Settles entries when they are due, for ever, so that subscribers hear of it. Every `serve_…` does this; it is needed by itself only
    /// where nothing is served.
    pub async fn keep_time(&self) {
        loop {
            let changed = self.shared.deadline.notified();
            let (next, now) = self.look_ahead();
            match next {
                None => changed.await,
                Some(at) => {
                    let wait = Duration::try_from(at - now).unwrap_or(Duration::ZERO);
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep(wait) => self.with(|_, _| ()),
                    }
                }
            }
        }
    }

    fn look_ahead(&self) -> (Option<OffsetDateTime>, OffsetDateTime) {
        (self.lock().next_deadline(), (self.shared.clock)())
    }

    /// Wakes with the new revision whenever the cloud's contents changed. Level-triggered: several changes may be one wake-up.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// The cloud as its data plane sees it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.with(|cloud, _| cloud.snapshot())
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> String {
        self.with(|cloud, _| cloud.region().to_owned())
    }

    /// ID and secret of the first access key that is enabled.
    pub(crate) fn access_key(&self) -> Option<(String, String)> {
        self.with(|cloud, _| cloud.access_key())
    }

    /// How often each action was called.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.with(|cloud, _| cloud.calls().clone())
    }

    /// How often each action was refused because of too many calls, injected faults not counted.
    #[must_use]
    pub fn throttled(&self) -> BTreeMap<String, u64> {
        self.with(|cloud, _| cloud.throttled().clone())
    }

    /// The behaviour as it is set.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.with(|cloud, _| cloud.settings().clone())
    }

    /// Changes the behaviour.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        self.with(|cloud, _| {
            let mut settings = cloud.settings().clone();
            change(&mut settings);
            cloud.set_settings(settings);
        });
    }

    /// Sets how long an entry is Pending or Deleting from now on.
    pub fn set_entry_delay(&self, delay: Duration) {
        self.change_settings(|settings| {
            settings.entry_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        });
    }

    /// Adds a VPC with everything in it.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_vpc(&self, spec: &VpcSpec) -> Result<(), AdminError> {
        self.with(|cloud, now| cloud.add_vpc(spec, now))
    }

    /// Adds a vSwitch.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_vswitch(&self, vpc: &str, spec: &VSwitchSpec) -> Result<(), AdminError> {
        self.with(|cloud, now| cloud.add_vswitch(vpc, spec, now))
    }

    /// Adds a route table.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_table(&self, vpc: &str, spec: &RouteTableSpec) -> Result<(), AdminError> {
        self.with(|cloud, now| cloud.add_table(vpc, spec, now))
    }

    /// Makes a vSwitch use a table.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn associate(&self, vswitch: &str, table: &str) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.associate(vswitch, table))
    }

    /// Adds an instance.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_instance(&self, spec: &InstanceSpec) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.add_instance(spec))
    }

    /// Gives an instance an elastic address, or takes it away.
    ///
    /// # Errors
    /// No such instance.
    pub fn set_elastic_address(&self, id: &str, address: Option<Ipv4Addr>) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.set_elastic_address(id, address))
    }

    /// Takes an instance away; entries that point at it stay.
    ///
    /// # Errors
    /// No such instance.
    pub fn remove_instance(&self, id: &str) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.remove_instance(id))
    }

    /// An address of the vSwitch that no interface has, leaving out those that the vendor keeps (the first and the last three).
    #[must_use]
    pub fn free_address(&self, vswitch: &str) -> Option<Ipv4Addr> {
        self.with(|cloud, _| cloud.free_address(vswitch))
    }

    /// Sets the quota of custom entries of a table.
    ///
    /// # Errors
    /// No such table.
    pub fn set_quota(&self, table: &str, quota: u32) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.set_quota(table, quota))
    }

    /// Sets who may reach the members of a security group, making it when needed.
    ///
    /// # Errors
    /// No such VPC.
    pub fn set_security_group(
        &self,
        vpc: &str,
        group: &str,
        ingress: Vec<Ingress>,
    ) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.set_security_group(vpc, group, ingress))
    }

    /// Puts an entry into a table past the API's checks, Available at once.
    ///
    /// # Errors
    /// No such table, or the destination is taken.
    pub fn insert_entry(&self, table: &str, spec: &EntrySpec) -> Result<String, AdminError> {
        self.with(|cloud, now| cloud.insert_entry(table, spec, now))
    }

    /// Takes an entry out of a table at once.
    ///
    /// # Errors
    /// No such table or entry.
    pub fn remove_entry(&self, table: &str, destination: IpNet) -> Result<(), AdminError> {
        self.with(|cloud, now| cloud.remove_entry(table, destination, now))
    }

    /// Adds an access key.
    ///
    /// # Errors
    /// There is one of that ID.
    pub fn add_access_key(&self, key: AccessKeySpec) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.add_access_key(key))
    }

    /// Takes an access key away.
    ///
    /// # Errors
    /// There is none of that ID.
    pub fn remove_access_key(&self, id: &str) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.remove_access_key(id))
    }

    /// Ends the validity of all role credentials given out so far.
    pub fn expire_role_credentials(&self) {
        self.with(Cloud::expire_role_credentials);
    }

    /// The whole state, which [`Emulator::restore`] and [`Handle::restore`] take. It holds secrets in the clear.
    ///
    /// # Errors
    /// It cannot be written as JSON, which no state is known to cause.
    pub fn save(&self) -> Result<serde_json::Value, StateError> {
        self.with(|cloud, _| cloud.save())
    }

    /// Puts a state in place of the present one. The revision goes on, so that whoever waits for a change sees one.
    ///
    /// # Errors
    /// The state is of another form or contradicts itself; then nothing changes.
    pub fn restore(&self, state: serde_json::Value) -> Result<(), StateError> {
        let restored = Cloud::restore(state)?;
        self.with(|cloud, _| cloud.replace(restored));
        Ok(())
    }

    /// Gives a VPC, vSwitch, route table, instance or gateway a status, e.g. `Pending`; none ends it.
    ///
    /// # Errors
    /// Nothing has that ID.
    pub fn set_status(&self, id: &str, status: Option<String>) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.set_status(id, status))
    }

    /// Says that an entry is being modified, or that a cloud product keeps it.
    ///
    /// # Errors
    /// No such table or entry, or the entry is Pending or Deleting.
    pub fn mark_entry(
        &self,
        table: &str,
        destination: IpNet,
        modifying: bool,
        managed: bool,
    ) -> Result<(), AdminError> {
        self.with(|cloud, now| cloud.mark_entry(table, destination, modifying, managed, now))
    }

    /// Sets the destinations of a prefix list in a table; none takes the list away.
    ///
    /// # Errors
    /// No such table.
    pub fn set_prefix_list(
        &self,
        table: &str,
        list: &str,
        destinations: Vec<IpNet>,
    ) -> Result<(), AdminError> {
        self.with(|cloud, _| cloud.set_prefix_list(table, list, destinations))
    }

    /// What is left of the script of faults.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.with(|cloud, _| cloud.faults().to_vec())
    }

    /// Puts another script of faults in place of the present one.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.with(|cloud, _| cloud.set_faults(faults));
    }

    /// Makes the next matching calls run into trouble.
    pub fn inject(&self, fault: Fault) {
        self.with(|cloud, _| cloud.inject(fault));
    }

    /// Ends all injected trouble.
    pub fn clear_faults(&self) {
        self.with(|cloud, _| cloud.clear_faults());
    }
}
