//! The network parts an agent from everybody else, wholly or in one direction, and joins it again.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bai_model::AgentStatus;
use bai_testkit::services::Missing;

use super::network::{Joined, Network};
use super::{Fleet, LOSS, Member, PATIENCE, create, destroy, until};
use crate::crash::says;
use crate::server::bai;

/// An agent in a namespace, which is named `i-…`.
fn member(fleet: &Fleet, id: &str, host: &Joined) -> Member {
    // Nobody else is in this network.
    let own = "runtime = 'process'\nallow-process-runtime = true";
    let mut member = fleet.member(id, &host.address, own);
    let network = format!("--net={}", host.path.display());
    member.place.enter = vec!["nsenter".to_owned(), network];
    member
}

async fn start() -> Result<(Fleet, [Joined; 2], Network), Missing> {
    let mut network = Network::new()?;
    let hosts = [network.join()?, network.join()?];
    let fleet = Fleet::start(&network.host()).await?;
    Ok((fleet, hosts, network))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_parted_from_the_others_is_lost_and_found() {
    let (fleet, [far, near], _network) = match start().await {
        Ok(started) => started,
        Err(missing) => return println!("SKIPPED: a network that parts agents, because {missing}"),
    };
    let mut parted = member(&fleet, "i-parted", &far);
    let mut other = member(&fleet, "i-other", &near);
    for member in [&mut parted, &mut other] {
        member.start();
        fleet.until_status(member, AgentStatus::Alive, PATIENCE).await;
    }
    let client = fleet.client();
    for number in 0..6 {
        let name = format!("early-{number}");
        create(&client, &name).await.unwrap();
        assert_eq!(
            says(&client, &name, number).await.unwrap(),
            Ok(format!("{number}\n"))
        );
    }
    let mut away = fleet.sessions_of(&parted).await;
    let here = fleet.sessions_of(&other).await;
    assert!(!away.is_empty() && !here.is_empty(), "{away:?} {here:?}");

    far.unplug();
    let unplugged = Instant::now();
    fleet.until_status(&parted, AgentStatus::Lost, LOSS).await;
    println!("lost after {:?}", unplugged.elapsed());
    for name in &away {
        let refusal = says(&client, name, 10).await.unwrap().unwrap_err();
        assert!(refusal.starts_with("404 "), "{name}: {refusal}");
        let refusal = destroy(&client, name).await.unwrap_err();
        assert!(refusal.starts_with("404 "), "{name}: {refusal}");
    }
    // One of them is made anew: there must not be two when the first is back.
    let renewed = away.pop_first().unwrap();
    create(&client, &renewed).await.unwrap();
    assert_eq!(says(&client, &renewed, 14).await.unwrap(), Ok("14\n".to_owned()));
    assert!(fleet.sessions_of(&other).await.contains(&renewed));
    for name in &here {
        assert_eq!(says(&client, name, 11).await.unwrap(), Ok("11\n".to_owned()));
    }
    for number in 0..3 {
        let name = format!("late-{number}");
        create(&client, &name).await.unwrap();
        assert_eq!(says(&client, &name, 12).await.unwrap(), Ok("12\n".to_owned()));
        assert!(fleet.sessions_of(&other).await.contains(&name));
    }
    assert_eq!(fleet.sessions_of(&parted).await, away, "they are expected back");

    far.plug_in();
    let plugged_in = Instant::now();
    fleet.until_status(&parted, AgentStatus::Alive, PATIENCE).await;
    println!("found after {:?}", plugged_in.elapsed());
    fleet.converge(&[&parted, &other]).await;
    assert_eq!(fleet.sessions_of(&parted).await, away);
    for name in &away {
        assert_eq!(says(&client, name, 13).await.unwrap(), Ok("13\n".to_owned()));
    }
    assert_eq!(says(&client, &renewed, 15).await.unwrap(), Ok("15\n".to_owned()));
    for member in [&parted, &other] {
        for name in fleet.sessions_of(member).await {
            destroy(&client, &name).await.unwrap();
        }
    }
    fleet.converge(&[&parted, &other]).await;
    parted.end().await;
    other.end().await;
}

/// What an agent says is lost, or what it is told: the others see no more of it than that it is silent.
async fn parted_one_way(part: fn(&Joined), join: fn(&Joined)) -> Result<(), Missing> {
    let (fleet, [far, near], _network) = start().await?;
    let mut parted = member(&fleet, "i-parted", &far);
    let mut other = member(&fleet, "i-other", &near);
    parted.start();
    fleet.until_status(&parted, AgentStatus::Alive, PATIENCE).await;
    let client = fleet.client();
    for name in ["first", "second", "third"] {
        create(&client, name).await.unwrap();
        assert_eq!(says(&client, name, 1).await.unwrap(), Ok("1\n".to_owned()));
    }

    part(&far);
    // Before anybody has noticed. Whether the agent has heard of it or not, no answer comes.
    let (said, created) = tokio::join!(says(&client, "first", 2), create(&client, "during"));
    for refusal in [said.unwrap().unwrap_err(), created.unwrap_err()] {
        assert!(refusal.starts_with("500 "), "{refusal}");
    }
    fleet.until_status(&parted, AgentStatus::Lost, LOSS).await;
    let refusal = says(&client, "second", 3).await.unwrap().unwrap_err();
    assert!(refusal.starts_with("404 "), "{refusal}");
    other.start();
    fleet.until_status(&other, AgentStatus::Alive, PATIENCE).await;
    // There must not be two when the first is back.
    for (name, number) in [("first", 4), ("late", 5)] {
        create(&client, name).await.unwrap();
        let said = says(&client, name, number).await.unwrap();
        assert_eq!(said, Ok(format!("{number}\n")));
    }

    join(&far);
    fleet.until_status(&parted, AgentStatus::Alive, PATIENCE).await;
    fleet.converge(&[&parted, &other]).await;
    let (away, here) = (["second", "third"], ["first", "late"]);
    assert_eq!(
        fleet.sessions_of(&parted).await,
        away.map(str::to_owned).into(),
        "none of them twice, and none that was refused"
    );
    assert_eq!(fleet.sessions_of(&other).await, here.map(str::to_owned).into());
    create(&client, "during").await.unwrap();
    for name in [away, here].concat().into_iter().chain(["during"]) {
        assert_eq!(says(&client, name, 6).await.unwrap(), Ok("6\n".to_owned()));
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&parted, &other]).await;
    parted.end().await;
    other.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_nobody_hears_is_lost_and_found() {
    if let Err(missing) = parted_one_way(Joined::mute, Joined::unmute).await {
        println!("SKIPPED: an agent that nobody hears, because {missing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hears_nobody_is_lost_and_found() {
    if let Err(missing) = parted_one_way(Joined::deafen, Joined::undeafen).await {
        println!("SKIPPED: an agent that hears nobody, because {missing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_whose_answers_are_lost_end_and_leave_nothing_behind() {
    let (fleet, [far, _near], _network) = match start().await {
        Ok(started) => started,
        Err(missing) => return println!("SKIPPED: answers that are lost, because {missing}"),
    };
    let mut member = member(&fleet, "i-unanswering", &far);
    member.start();
    fleet.until_status(&member, AgentStatus::Alive, PATIENCE).await;
    let client = fleet.client();
    for name in ["kept", "ended"] {
        create(&client, name).await.unwrap();
        assert_eq!(says(&client, name, 1).await.unwrap(), Ok("1\n".to_owned()));
    }

    let endpoint = member.place.endpoint();
    let (_, port) = endpoint.rsplit_once(':').unwrap();
    if let Err(missing) = far.lose_answers(port) {
        return println!("SKIPPED: answers that are lost, because {missing}");
    }
    // The agent does what it is told, and cannot say so; its heartbeats arrive.
    let (said, created, _) = tokio::join!(
        says(&client, "kept", 2),
        create(&client, "during"),
        destroy(&client, "ended")
    );
    for refusal in [said.unwrap().unwrap_err(), created.unwrap_err()] {
        assert!(refusal.starts_with("500 "), "{refusal}");
    }
    assert_eq!(fleet.status(&member).await, Some(AgentStatus::Alive));

    far.pass_answers(port);
    let is_answering = async || says(&client, "kept", 3).await.unwrap() == Ok("3\n".to_owned());
    until("an answer", PATIENCE, is_answering).await;
    fleet.converge(&[&member]).await;
    assert_eq!(fleet.sessions_of(&member).await, ["kept".to_owned()].into());
    for name in ["during", "ended"] {
        create(&client, name).await.unwrap();
        assert_eq!(says(&client, name, 4).await.unwrap(), Ok("4\n".to_owned()));
    }
    for name in ["kept", "during", "ended"] {
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&member]).await;
    member.end().await;
}

/// A rack without power: a line tells of all that are missed together, however many they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_are_gone_at_once_are_told_together() {
    const AGENTS: usize = 60;
    let fleet = match Fleet::start("127.0.0.1").await {
        Ok(fleet) => fleet,
        Err(missing) => return println!("SKIPPED: agents that are gone at once, because {missing}"),
    };
    let events = fleet.place.events();
    let mut rack = Command::new(bai());
    rack.args([
        "simulate-agents",
        "--count",
        &AGENTS.to_string(),
        "--manager",
        &events,
    ]);
    let mut rack = Process(rack.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let reader = fleet.store.reader();
    let alive = async || reader.addresses_of_agents().await.unwrap().len();
    until("all agents", PATIENCE, async || alive().await == AGENTS).await;
    let before = fleet.manager.log().len();
    rack.0.kill().unwrap();
    until("the loss of all", PATIENCE, async || alive().await == 0).await;

    // What heartbeats they still sent was spread over the three seconds between two of them.
    const LOST: &str = "agents are lost: nothing was heard of them";
    let lines = || warnings(&fleet.manager.log()[before..]);
    let count = |line: &String| {
        // One that was missed alone.
        if line.contains("an agent is lost: nothing was heard of it") {
            return Some(1);
        }
        let (_, fields) = line.split_once(LOST)?.1.split_once("agents=")?;
        fields.split(' ').next()?.parse::<usize>().ok()
    };
    let told = || lines().iter().filter_map(count).sum::<usize>();
    until("all to be told", PATIENCE, async || told() >= AGENTS).await;
    let lines = lines();
    assert!(lines.len() < AGENTS / 4, "{lines:#?}");
    let is_short = |line: &String| line.contains("i-simulated-") && line.contains(" more");
    assert!(lines.iter().any(is_short), "{lines:#?}");
}

/// Of agents that are missed, whatever else there is to warn of on a busy machine.
fn warnings(log: &str) -> Vec<String> {
    let is_meant = |line: &&str| {
        let about = [
            "nothing was heard of",
            "no connection to agents",
            "no connection to an agent",
        ];
        about.iter().any(|about| line.contains(about))
    };
    let lines = log
        .lines()
        .filter(|line| line.contains(" WARN "))
        .filter(is_meant);
    lines.map(str::to_owned).collect()
}

/// Killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no end.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
