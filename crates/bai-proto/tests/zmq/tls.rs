//! Encrypted and authenticated connections, for calls and events alike.

use std::sync::Arc;

use bai_proto::event::{EventSender, ReceiverOptions};
use bai_proto::rpc::ZmqAgent;
use bai_proto::zmtp::{LinkOptions, SocketType, Tls, dial};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::events::{Receiving, heartbeat};
use crate::support::{LIMITS, Serving, Stub, agent_options, endpoint, link_options, server_options, soon};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A process that is called at `name`.
    fn member(&self, name: &str) -> Tls {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let authority = self.0.pem();
        Tls::new(
            authority.as_bytes(),
            certificate.pem().as_bytes(),
            key.serialize_pem().as_bytes(),
        )
        .expect("usable settings")
    }
}

#[tokio::test]
async fn calls_and_events_go_through_mutual_tls() {
    let authority = Authority::new();
    let (manager, agent) = (authority.member("127.0.0.1"), authority.member("127.0.0.1"));
    let mut options = server_options();
    options.tls = Some(agent.clone());
    let server = Serving::start(Arc::new(Stub::default()), options).await;
    let mut options = agent_options();
    options.tls = Some(manager.clone());
    let client = ZmqAgent::connect(endpoint(server.address), options);
    soon(client.ping()).await.expect("an answer");

    let mut receiving = Receiving::start(ReceiverOptions {
        tls: Some(manager),
        ..Default::default()
    })
    .await;
    let options = LinkOptions {
        tls: Some(agent),
        ..link_options()
    };
    let sender = EventSender::connect("i-node01".into(), endpoint(receiving.address), options);
    let event = heartbeat("tcp://127.0.0.1:6001");
    sender.send(&event).await;
    assert_eq!(receiving.next().await, event);
}

#[tokio::test]
async fn who_is_not_of_the_cluster_is_turned_away() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut options = server_options();
    options.tls = Some(authority.member("127.0.0.1"));
    let server = Serving::start(Arc::new(Stub::default()), options).await;
    let address = endpoint(server.address);
    let stranger = other.member("127.0.0.1");
    for tls in [None, Some(&stranger)] {
        let dialed = soon(dial(&address, SocketType::Dealer, LIMITS, tls)).await;
        assert!(dialed.is_err(), "{dialed:?}");
    }
    // A member that is not who it should be.
    let mut options = server_options();
    options.tls = Some(authority.member("elsewhere.example"));
    let server = Serving::start(Arc::new(Stub::default()), options).await;
    let member = authority.member("127.0.0.1");
    let dialed = soon(dial(
        &endpoint(server.address),
        SocketType::Dealer,
        LIMITS,
        Some(&member),
    ))
    .await;
    assert!(dialed.is_err(), "{dialed:?}");
}
