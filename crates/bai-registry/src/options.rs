//! Where a registry is and how it is talked to.

use std::fmt;
use std::time::Duration;

use reqwest::Url;
use zeroize::Zeroizing;

use crate::Cause;

/// A registry as configured below `config/docker/registry/<name>`.
#[derive(Clone)]
pub struct Address {
    pub name: String,
    /// `http` or `https`.
    pub url: String,
    /// On Docker's hub, whose repositories are listed.
    pub username: Option<String>,
    pub password: Option<Zeroizing<String>>,
}

/// Without the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl Address {
    /// The URL, ending in `/`.
    pub(crate) fn base(&self) -> Result<Url, Cause> {
        let hint = "give a URL such as https://registry.example.com";
        let mut url = Url::parse(&self.url)
            .map_err(|error| Cause::Settings(format!("{:?} is no URL ({error}); {hint}", self.url)))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(Cause::Settings(format!(
                "{:?} is no http or https URL; {hint}",
                self.url
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Cause::Settings(
                "its URL holds credentials; put them into the registry's username and password".to_owned(),
            ));
        }
        url.set_query(None);
        url.set_fragment(None);
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(url)
    }

    /// Both parts of the credentials, if there are both.
    pub(crate) fn credentials(&self) -> Option<(&str, &str)> {
        match (&self.username, &self.password) {
            (Some(username), Some(password)) if !username.is_empty() && !password.is_empty() => {
                Some((username, password))
            }
            _ => None,
        }
    }
}

/// Whose certificates are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the machine's authorities.
    #[default]
    System,
    /// Those, and of the authorities in this PEM text.
    SystemAnd(String),
    /// Anybody's: `docker-registry.ssl-verify = false`.
    Anybody,
}

/// How registries are talked to; the same for all.
#[derive(Clone, Debug)]
pub struct Options {
    pub trust: Trust,
    /// Architectures in the registries' words (`amd64`), the preferred first.
    pub architectures: Vec<String>,
    /// How often a question is asked before its failure counts.
    pub attempts: u32,
    /// Wait before the second attempt; doubled for each later one, unless the registry says how long.
    pub backoff: Duration,
    /// For one request, its body included.
    pub deadline: Duration,
    /// Names on a page of a listing.
    pub page_size: usize,
    /// Where Docker's hub lists repositories; its registry has no catalogue.
    pub hub: String,
}

impl Default for Options {
    fn default() -> Self {
        let here = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut architectures = vec![here.to_owned()];
        if here != "amd64" {
            architectures.push("amd64".to_owned());
        }
        Self {
            trust: Trust::System,
            architectures,
            attempts: 5,
            backoff: Duration::from_millis(250),
            deadline: Duration::from_secs(30),
            page_size: 100,
            hub: "https://hub.docker.com/".to_owned(),
        }
    }
}
