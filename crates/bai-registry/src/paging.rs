//! Listings in pages: the next page is named by a `Link` header or by a member of the answer.

use std::collections::HashSet;

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};

use crate::Cause;

/// Names that one listing may have.
pub(crate) const MAX_NAMES: usize = 100_000;
/// Pages that one listing may have.
const MAX_PAGES: usize = 10_000;

/// Where a listing is.
#[derive(Debug)]
pub(crate) struct Pages {
    seen: HashSet<Url>,
    next: Option<Url>,
}

impl Pages {
    pub fn new(first: Url) -> Self {
        Self {
            seen: HashSet::new(),
            next: Some(first),
        }
    }

    /// The page to ask for now.
    pub fn take(&mut self) -> Option<Url> {
        self.next.take()
    }

    /// Notes what `page` says of its successor, which must be on the same server: it gets the same credentials.
    pub fn follow(&mut self, page: Url, target: Option<&str>) -> Result<(), Cause> {
        let Some(target) = target else { return Ok(()) };
        let next = page
            .join(target)
            .map_err(|error| Cause::malformed(format!("the next page is no URL: {error}")))?;
        if next.origin() != page.origin() {
            return Err(Cause::malformed("the next page is on another server"));
        }
        self.seen.insert(page);
        if self.seen.contains(&next) || self.seen.len() >= MAX_PAGES {
            return Err(Cause::malformed("the pages of the listing do not end"));
        }
        self.next = Some(next);
        Ok(())
    }
}

/// The target of the `Link` header with `rel="next"`.
pub(crate) fn next_link(headers: &HeaderMap) -> Option<String> {
    let links = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    links.into_iter().find_map(|header| {
        let mut rest = header;
        while let Some((target, after)) = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')) {
            let (parameters, after) = after.split_once(',').unwrap_or((after, ""));
            let is_next = parameters.split(';').any(|parameter| {
                parameter.split_once('=').is_some_and(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
                })
            });
            if is_next {
                return Some(target.to_owned());
            }
            rest = after;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LINK, text.parse().unwrap());
        next_link(&headers)
    }

    #[test]
    fn the_next_link_is_found_among_others() {
        assert_eq!(
            link(r#"</v2/_catalog?last=b,c&n=2>; rel="next""#).as_deref(),
            Some("/v2/_catalog?last=b,c&n=2")
        );
        assert_eq!(
            link(r#"</a>; rel="prev", </b>; foo=1; REL=next"#).as_deref(),
            Some("/b")
        );
        assert_eq!(link(r#"</a>; rel="prev""#), None);
        assert_eq!(link("<"), None);
    }

    #[test]
    fn pages_stay_on_their_server_and_end() {
        let url = |text: &str| Url::parse(text).unwrap();
        let mut pages = Pages::new(url("http://a/1"));
        let page = pages.take().unwrap();
        assert!(pages.follow(page.clone(), Some("http://b/2")).is_err());
        assert!(pages.follow(page.clone(), Some("http://a:81/2")).is_err());
        pages.follow(page.clone(), Some("/2")).unwrap();
        let page = pages.take().unwrap();
        assert_eq!(page, url("http://a/2"));
        assert!(pages.follow(page.clone(), Some("/1")).is_err());
        assert!(pages.follow(page.clone(), Some("/2")).is_err());
        pages.follow(page, None).unwrap();
        assert_eq!(pages.take(), None);
    }
}
