//! The network parts an agent from everybody else, and joins it again.

use std::time::Instant;

use bai_model::AgentStatus;
use bai_testkit::services::Missing;

use super::network::{Joined, Network};
use super::{Fleet, LOSS, Member, PATIENCE, create, destroy};
use crate::crash::says;

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
