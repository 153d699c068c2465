//! Plans of machines: golden scenarios, and properties that hold for every state.

use proptest::prelude::*;
use warren_model::record::Power;
use warren_plan::machine::{Container, DesiredMachine, Link, MachineStep, ObservedMachine, plan};

const RUNNING: ObservedMachine = ObservedMachine {
    disk: true,
    root: false,
    container: Container::Running,
    boot: Some(1),
    link: Link::Ready,
    admitted: true,
    agent_open: true,
    agent_connected: true,
    configured: true,
    published: true,
};

fn scenario(title: &str, power: Power, boot: u64, observed: &ObservedMachine) -> String {
    let steps = plan(DesiredMachine { power, boot }, observed);
    let list = steps.iter().map(|step| step.as_str()).collect::<Vec<_>>().join(" → ");
    format!("{title}\n    {}\n", if list.is_empty() { "nothing" } else { &list })
}

#[test]
fn plans_are_as_written_down() {
    let absent = ObservedMachine::default();
    let stopped = ObservedMachine { disk: true, admitted: true, published: true, ..absent };
    let text = [
        scenario("a new machine", Power::On, 1, &absent),
        scenario("it runs as wanted", Power::On, 1, &RUNNING),
        scenario(
            "the daemon came back and the agent has not dialled yet",
            Power::On,
            1,
            &ObservedMachine { agent_open: false, agent_connected: false, configured: false, ..RUNNING },
        ),
        scenario("its link was deleted", Power::On, 1, &ObservedMachine { link: Link::Absent, ..RUNNING }),
        scenario("its rules were flushed", Power::On, 1, &ObservedMachine { admitted: false, ..RUNNING }),
        scenario("the facts changed", Power::On, 1, &ObservedMachine { configured: false, ..RUNNING }),
        scenario(
            "it died by itself",
            Power::On,
            1,
            &ObservedMachine { container: Container::Dead, link: Link::Absent, agent_connected: false, ..RUNNING },
        ),
        scenario("a restart is wanted", Power::On, 2, &RUNNING),
        scenario(
            "the daemon died between create and start",
            Power::On,
            1,
            &ObservedMachine {
                container: Container::Created,
                root: true,
                link: Link::Absent,
                agent_open: false,
                agent_connected: false,
                configured: false,
                ..RUNNING
            },
        ),
        scenario("the host was rebooted", Power::On, 1, &stopped),
        scenario("it runs and is to stop", Power::Off, 1, &RUNNING),
        scenario("it is stopped", Power::Off, 1, &stopped),
        scenario("it runs and is to go", Power::Gone, 1, &ObservedMachine { published: false, ..RUNNING }),
        scenario("it is half removed", Power::Gone, 1, &ObservedMachine { disk: true, published: true, ..absent }),
        scenario("nothing is left but the record", Power::Gone, 1, &ObservedMachine { published: true, ..absent }),
    ]
    .concat();
    insta::assert_snapshot!(text);
}

fn observed() -> impl Strategy<Value = ObservedMachine> {
    let container =
        prop_oneof![Just(Container::Absent), Just(Container::Created), Just(Container::Running), Just(Container::Dead)];
    let link = prop_oneof![Just(Link::Absent), Just(Link::Broken), Just(Link::Ready)];
    (any::<[bool; 7]>(), container, link, proptest::option::of(0u64..3)).prop_map(|(b, container, link, boot)| {
        ObservedMachine {
            disk: b[0],
            root: b[1],
            container,
            boot,
            link,
            admitted: b[2],
            agent_open: b[3],
            agent_connected: b[4],
            configured: b[5],
            published: b[6],
        }
    })
}

/// What a step does to the world, when it succeeds.
fn apply(step: MachineStep, boot: u64, mut world: ObservedMachine) -> Option<ObservedMachine> {
    use MachineStep::*;
    match step {
        CreateDisk => world.disk = true,
        MountRoot => world.root = true,
        OpenAgent => world.agent_open = true,
        Admit => world.admitted = true,
        CreateContainer => {
            assert!(world.root && world.agent_open, "a container needs its root and its agent's directory");
            assert_eq!(world.container, Container::Absent);
            world.container = Container::Created;
            world.boot = Some(boot);
        }
        AttachLink => {
            assert!(world.admitted, "rules come before the link");
            world.link = Link::Ready;
        }
        StartContainer => {
            assert_eq!(world.container, Container::Created);
            assert_eq!(world.link, Link::Ready, "nothing runs before its link is there");
            world.container = Container::Running;
        }
        AwaitAgent => world.agent_connected = true,
        Configure => world.configured = true,
        Publish => world.published = true,
        StopContainer | RemoveContainer => {
            world.container = Container::Absent;
            world.link = Link::Absent;
            world.boot = None;
            world.agent_connected = false;
            world.configured = false;
        }
        DetachLink => world.link = Link::Absent,
        CloseAgent => world.agent_open = false,
        UnmountRoot => {
            assert_ne!(world.container, Container::Created, "it could not be started any more");
            world.root = false;
        }
        Expel => world.admitted = false,
        RemoveDisk => {
            assert!(!world.root, "a mounted disk cannot be removed");
            world.disk = false;
        }
        Forget => {
            assert_eq!(
                world,
                ObservedMachine {
                    published: true,
                    boot: world.boot,
                    configured: world.configured,
                    agent_connected: world.agent_connected,
                    ..ObservedMachine::default()
                }
            );
            return None;
        }
    }
    Some(world)
}

proptest! {
    #[test]
    fn a_plan_reaches_its_aim_even_when_it_is_cut_anywhere(
        mut world in observed(),
        power in prop_oneof![Just(Power::On), Just(Power::Off), Just(Power::Gone)],
        cuts in proptest::collection::vec(0usize..12, 0..4),
    ) {
        let desired = DesiredMachine { power, boot: 1 };
        for cut in cuts {
            for step in plan(desired, &world).into_iter().take(cut) {
                match apply(step, 1, world) {
                    Some(next) => world = next,
                    None => return Ok(()),
                }
            }
        }
        for step in plan(desired, &world) {
            match apply(step, 1, world) {
                Some(next) => world = next,
                None => return Ok(()),
            }
        }
        prop_assert_eq!(plan(desired, &world), vec![]);
        if power == Power::On {
            prop_assert_eq!(world.container, Container::Running);
            prop_assert!(world.admitted && world.link == Link::Ready);
        } else {
            prop_assert_eq!(world.container, Container::Absent);
        }
    }
}
