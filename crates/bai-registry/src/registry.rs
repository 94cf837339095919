//! A registry and its repositories, after the way in was found.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::access::{Access, Login};
use crate::http::{Http, Question};
use crate::manifest::{self, Image, MANIFESTS, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::paging::{MAX_NAMES, Pages, next_link};
use crate::{Address, Cause, Options, Result};

/// Bytes of one page of a listing.
const MAX_PAGE: usize = 4 * 1024 * 1024;
/// Repositories of Docker's hub with this beginning are from before 18.12 and are not listed.
const OLD_PREFIX: &str = "kernel-";

/// A registry that can be asked.
#[derive(Debug)]
pub struct Registry {
    address: Address,
    options: Options,
    base: Url,
    http: Http,
    login: Login,
}

/// One of its repositories.
#[derive(Debug)]
pub struct Repository {
    registry: Arc<Registry>,
    name: String,
    access: Access,
}

impl Registry {
    /// Finds out how the registry wants to be asked.
    ///
    /// # Errors
    /// For settings that cannot work, and when the registry cannot be reached, refuses the credentials or does not speak
    /// version 2.
    pub async fn connect(address: Address, options: &Options) -> Result<Arc<Self>> {
        let connected = async {
            let base = address.base()?;
            let http = Http::new(options, &base)?;
            let login = Login::find(&http, &base, &address).await?;
            Ok((base, http, login))
        };
        match connected.await {
            Ok((base, http, login)) => Ok(Arc::new(Self {
                address,
                options: options.clone(),
                base,
                http,
                login,
            })),
            Err(cause) => Err(Cause::of(cause, &address.name, "")),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.address.name
    }

    /// The names of all repositories in order: the catalogue, or on Docker's hub those of the user.
    ///
    /// # Errors
    /// When the listing cannot be had whole.
    pub async fn repositories(&self) -> Result<Vec<String>> {
        let names = if is_dockers(&self.base) {
            self.hub().await
        } else {
            self.catalog().await
        };
        names.map_err(|cause| cause.of(self.name(), "its list of repositories"))
    }

    async fn catalog(&self) -> std::result::Result<Vec<String>, Cause> {
        let access = Access::new(&self.http, &self.login, "registry:catalog:*".to_owned()).await?;
        let mut names = BTreeSet::new();
        let mut pages = Pages::new(self.listing("v2/_catalog")?);
        while let Some(url) = pages.take() {
            let question = page(url);
            let answer = access.get(&self.http, &self.login, &question).await?.success()?;
            let page: Catalog = json(&answer.body)?;
            extend(&mut names, page.repositories)?;
            pages.follow(answer.url, next_link(&answer.headers).as_deref())?;
        }
        Ok(names.into_iter().collect())
    }

    pub(crate) async fn hub(&self) -> std::result::Result<Vec<String>, Cause> {
        let user = self.address.username.as_deref().filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| {
            Cause::Settings(
                "Docker's hub lists the repositories of a user: set the registry's username".to_owned(),
            )
        })?;
        let first = Url::parse(&self.options.hub).map(|mut url| {
            url.set_path(&format!("/v2/repositories/{user}/"));
            url.set_query(Some(&format!("page_size={}", self.options.page_size)));
            url
        });
        let first = first.map_err(|error| Cause::Settings(error.to_string()))?;
        let mut names = BTreeSet::new();
        let mut pages = Pages::new(first);
        while let Some(url) = pages.take() {
            let answer = self.http.get(&page(url), None).await?.success()?;
            let page: HubPage = json(&answer.body)?;
            let current = page.results.into_iter().map(|result| result.name);
            let current = current.filter(|name| !name.starts_with(OLD_PREFIX));
            extend(&mut names, current.map(|name| format!("{user}/{name}")).collect())?;
            pages.follow(answer.url, page.next.as_deref())?;
        }
        Ok(names.into_iter().collect())
    }

    /// Asks for permission to look at a repository.
    ///
    /// # Errors
    /// When it is refused, or the name is none that a repository can have.
    pub async fn repository(self: &Arc<Self>, name: &str) -> Result<Repository> {
        let access = async {
            check_name(name)?;
            Access::new(&self.http, &self.login, format!("repository:{name}:pull")).await
        };
        match access.await {
            Ok(access) => Ok(Repository {
                registry: Arc::clone(self),
                name: name.to_owned(),
                access,
            }),
            Err(cause) => Err(cause.of(self.name(), name)),
        }
    }

    fn listing(&self, path: &str) -> std::result::Result<Url, Cause> {
        let mut url = self.url(path)?;
        url.set_query(Some(&format!("n={}", self.options.page_size)));
        Ok(url)
    }

    fn url(&self, path: &str) -> std::result::Result<Url, Cause> {
        self.base
            .join(path)
            .map_err(|error| Cause::malformed(error.to_string()))
    }
}

impl Repository {
    /// Without the registry's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The registry's name in the configuration.
    pub fn registry_name(&self) -> &str {
        self.registry.name()
    }

    /// All tags in order; none when every tag was deleted.
    ///
    /// # Errors
    /// When the listing cannot be had whole.
    pub async fn tags(&self) -> Result<Vec<String>> {
        self.tag_pages()
            .await
            .map_err(|cause| cause.of(self.registry.name(), &self.name))
    }

    async fn tag_pages(&self) -> std::result::Result<Vec<String>, Cause> {
        let mut names = BTreeSet::new();
        let mut pages = Pages::new(self.registry.listing(&format!("v2/{}/tags/list", self.name))?);
        while let Some(url) = pages.take() {
            let answer = self.get(&page(url)).await?;
            if answer.status == StatusCode::NOT_FOUND {
                break;
            }
            let answer = answer.success()?;
            let page: Tags = json(&answer.body)?;
            extend(&mut names, page.tags.unwrap_or_default())?;
            pages.follow(answer.url, next_link(&answer.headers).as_deref())?;
        }
        Ok(names.into_iter().collect())
    }

    /// The image with this tag; of an image for several platforms, the variant for Linux on the preferred architecture.
    ///
    /// # Errors
    /// When there is none, or what the registry says of it is not understood.
    pub async fn image(&self, tag: &str) -> Result<Image> {
        let image = async {
            check_tag(tag)?;
            let (config, size_bytes) = self.manifest(tag).await?;
            let blob = self
                .content("blobs", &config, "*/*", "the image's configuration", MAX_CONFIG)
                .await?;
            manifest::verify(&blob, &config)?;
            let labels = manifest::labels(&blob)?;
            Ok(Image {
                digest: config,
                size_bytes,
                labels,
            })
        };
        image
            .await
            .map_err(|cause: Cause| cause.of(self.registry.name(), &format!("{}:{tag}", self.name)))
    }

    /// Digest of the configuration and size of an image, through a list of platforms if there is one.
    async fn manifest(&self, tag: &str) -> std::result::Result<(String, u64), Cause> {
        let body = self
            .content("manifests", tag, MANIFESTS, "the manifest", MAX_MANIFEST)
            .await?;
        let list = match Manifest::parse(&body)? {
            Manifest::Image { config, size_bytes } => return Ok((config, size_bytes)),
            Manifest::List(list) => list,
        };
        let digest = manifest::choose(&list, &self.registry.options.architectures)?;
        let body = self
            .content("manifests", digest, MANIFESTS, "the manifest", MAX_MANIFEST)
            .await?;
        manifest::verify(&body, digest)?;
        match Manifest::parse(&body)? {
            Manifest::Image { config, size_bytes } => Ok((config, size_bytes)),
            Manifest::List(_) => Err(Cause::Unsupported("is a list of lists of platforms".to_owned())),
        }
    }

    async fn content(
        &self,
        kind: &str,
        reference: &str,
        accept: &'static str,
        what: &'static str,
        limit: usize,
    ) -> std::result::Result<bytes::Bytes, Cause> {
        let url = self
            .registry
            .url(&format!("v2/{}/{kind}/{reference}", self.name))?;
        let answer = self
            .get(&Question {
                url,
                accept,
                what,
                limit,
            })
            .await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(Cause::malformed(format!(
                "the registry lists it but has lost {what}"
            )));
        }
        Ok(answer.success()?.body)
    }

    async fn get(&self, question: &Question) -> std::result::Result<crate::http::Answer, Cause> {
        self.access
            .get(&self.registry.http, &self.registry.login, question)
            .await
    }
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Vec<String>,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct HubPage {
    results: Vec<HubRepository>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct HubRepository {
    name: String,
}

fn page(url: Url) -> Question {
    Question {
        url,
        accept: "application/json",
        what: "a page of the listing",
        limit: MAX_PAGE,
    }
}

fn json<'b, T: Deserialize<'b>>(body: &'b [u8]) -> std::result::Result<T, Cause> {
    serde_json::from_slice(body)
        .map_err(|error| Cause::malformed(format!("the listing is malformed: {error}")))
}

fn extend(names: &mut BTreeSet<String>, page: Vec<String>) -> std::result::Result<(), Cause> {
    names.extend(page);
    if names.len() > MAX_NAMES {
        return Err(Cause::malformed(format!(
            "the listing has more than {MAX_NAMES} names"
        )));
    }
    Ok(())
}

/// Whether this is a registry of Docker's own, which has no catalogue.
fn is_dockers(url: &Url) -> bool {
    url.host_str().is_some_and(|host| host.ends_with(".docker.io"))
}

/// Lower-case words with single separators, in parts between `/`: what cannot leave its place in a URL.
fn check_name(name: &str) -> std::result::Result<(), Cause> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let is_outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_part = |part: &str| {
        part.chars().all(is_inner) && is_outer(part.chars().next()) && is_outer(part.chars().next_back())
    };
    if name.len() <= 255 && name.split('/').all(is_part) {
        return Ok(());
    }
    Err(Cause::malformed("the name is none that a repository can have"))
}

fn check_tag(tag: &str) -> std::result::Result<(), Cause> {
    let is_tag = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['.', '-']) && tag.chars().all(is_tag) {
        return Ok(());
    }
    Err(Cause::malformed("the tag is none that an image can have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_registries_are_known_by_their_host() {
        let is_dockers = |url: &str| is_dockers(&Url::parse(url).unwrap());
        assert!(is_dockers("https://registry-1.docker.io") && is_dockers("https://index.docker.io/"));
        assert!(!is_dockers("https://docker.io.example.com") && !is_dockers("https://notdocker.io"));
    }

    #[test]
    fn names_and_tags_cannot_leave_their_place_in_a_url() {
        for good in ["python", "lablup/python", "a/b/c", "a__b", "a-b.c/d0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "../x",
            "a/../b",
            "A",
            "a b",
            "a?x",
            "a%2f",
            "a:b",
            &"a".repeat(256),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for bad in ["", "..", "a/b", "a?b", "-a", &"a".repeat(129)] {
            assert!(check_tag(bad).is_err(), "{bad}");
        }
        assert!(check_tag("3.6-ubuntu_1").is_ok());
    }
}
