//! Whole histories under seeded faults.

use super::*;

/// One run under faults. Whatever happens, foreign entries stay, nobody is called available in vain, and when the faults stop all is right.
fn under_faults(seed: u64) {
    let mut world = World::new(SECOND);
    world.random = seed;
    world.settings.audit = 60 * SECOND;
    if seed % 3 == 1 {
        world.vpc.add_table("vtb-2", "vsw-2");
        world.settings.tables = TableChoice::Listed(vec!["vtb-2".into()]);
    }
    if seed % 4 == 1 {
        world.vpc.quota = 8;
    }
    world.faults = Faults { lost_requests: 50, lost_answers: 50, throttled: 50, failed_conditions: 100 };
    world.vpc.put("vtb-1", "10.0.0.0/8", "i-vpn");
    world.vpc.put("vtb-1", "172.20.0.0/17", "i-wide");
    for index in 0..5 {
        world.join(index);
    }
    world.start();
    for _ in 0..40 {
        let index = usize::try_from(world.roll(12)).unwrap();
        let name = format!("n{index}");
        match world.roll(8) {
            0..=2 => world.join(index),
            3 => world.leave(&name),
            4 => {
                let meddler = world.roll(12);
                let table = world.some_table();
                world.vpc.put(&table, &format!("172.20.{index}.0/24"), &format!("i-n{meddler}"));
                world.meddled.insert(name);
            }
            5 => {
                let table = world.some_table();
                world.vpc.put(&table, &format!("172.20.{index}.128/25"), "i-x");
                world.meddled.insert(name);
            }
            6 => {
                let table = world.some_table();
                world.vpc.take(&table, format!("172.20.{index}.0/24").parse().unwrap());
                world.meddled.insert(name);
            }
            _ => world.start(),
        }
        // A node that went and came in one breath may be told of its predecessor's entry.
        let pause = world.roll(3000);
        world.run(MS * u32::try_from(pause).unwrap());
        for foreign in ["10.0.0.0/8 via i-vpn", "172.20.0.0/17 via i-wide"] {
            assert!(world.table().contains(&foreign.to_owned()), "seed {seed}: {foreign} is gone");
        }
    }
    world.faults = Faults::default();
    world.vpc.quota = 200;
    world.run(1200 * SECOND);
    world.assert_right();
    let live: BTreeSet<String> =
        world.nodes.values().map(|n| format!("{} via i-{}", n.pod_cidrs[0], n.name)).collect();
    let inside =
        |line: &String| live.iter().any(|l| l.split('.').nth(2) == line.split('.').nth(2) && l != line);
    let tables = world.tables();
    let astray: Vec<String> = tables
        .iter()
        .flat_map(|table| world.vpc.table(world.now, table))
        .filter(|line| !line.contains("/17") && line.starts_with("172.20.") && inside(line))
        .collect();
    assert!(astray.is_empty(), "seed {seed}: {astray:?} take packets from live nodes");
    let (calls, writes) = (world.vpc.writes, world.condition_writes);
    world.run(600 * SECOND);
    assert_eq!(
        (world.vpc.writes, world.condition_writes),
        (calls, writes),
        "seed {seed}: it does not come to rest"
    );
}

#[test]
fn under_seeded_faults_all_is_right_in_the_end() {
    for seed in 0..400 {
        under_faults(seed);
    }
}
