//! Writes a file anew with its breaks behind their numbers.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::sites::{self, Bytes, Kind, Site};
use crate::{Break, Place};

/// The file's new text, and the numbers that have a place in it.
pub(crate) fn switched(text: &str, breaks: &[&Break]) -> syn::Result<(String, Vec<u32>)> {
    let mut by_place: HashMap<(usize, usize), Vec<&Break>> = HashMap::new();
    for one in breaks {
        by_place.entry((one.span.start.line, one.span.start.column)).or_default().push(one);
    }
    let mut used = Vec::new();
    let mut chosen = Vec::new();
    for site in sites::find(text)? {
        let at = |place: Place, genres: &[&str]| -> Vec<&Break> {
            let all = by_place.get(&(place.line, place.column)).into_iter().flatten();
            all.filter(|one| genres.contains(&one.genre.as_str())).copied().collect()
        };
        let genre = match &site.kind {
            Kind::Arm { .. } => "MatchArm",
            Kind::Field { .. } => "StructField",
            Kind::Body => "FnValue",
            Kind::Unary { .. } => "UnaryOperator",
            _ => "BinaryOperator",
        };
        if let Kind::Matched { patterns } = &site.kind {
            let here: Vec<&Break> = patterns.iter().flat_map(|place| at(*place, &["MatchArm"])).collect();
            if !here.is_empty() {
                chosen.push((site, here));
            }
            continue;
        }
        let mut here = at(site.place, &[genre]);
        if let Kind::Arm { guard_place: Some(place), .. } = &site.kind {
            here.extend(at(*place, &["MatchArmGuard"]));
        }
        if !here.is_empty() {
            used.extend(here.iter().map(|one| one.id));
            chosen.push((site, here));
        }
    }
    // What encloses comes before what it encloses.
    chosen.sort_by_key(|(site, _)| (site.whole.start, usize::MAX - site.whole.end));
    let renderer = Renderer { text, chosen: &chosen };
    Ok((renderer.range(0..text.len(), 0), used))
}

struct Renderer<'a> {
    text: &'a str,
    chosen: &'a [(Site, Vec<&'a Break>)],
}

const AT: &str = "crate::switched::at()";

impl Renderer<'_> {
    /// The text of a range, in which sites from `first` on may lie.
    fn range(&self, range: Bytes, first: usize) -> String {
        let mut out = String::new();
        let mut position = range.start;
        let mut next = first;
        while let Some((site, breaks)) = self.chosen.get(next) {
            let whole = &site.whole;
            if whole.start >= range.end {
                break;
            }
            if whole.start >= position && whole.end <= range.end {
                out += &self.text[position..whole.start];
                let ids: Vec<String> = breaks.iter().map(|one| one.id.to_string()).collect();
                let of_arms = if matches!(site.kind, Kind::Matched { .. }) { "0," } else { "" };
                let ids = format!("{of_arms}{}", ids.join(","));
                let _ = write!(out, "/*<{ids}*/{}/*{ids}>*/", self.site(site, breaks, next + 1));
                position = whole.end;
            }
            next += 1;
        }
        out + &self.text[position..range.end]
    }

    fn site(&self, site: &Site, breaks: &[&Break], inner: usize) -> String {
        let part = |range: &Bytes| self.range(range.clone(), inner);
        match &site.kind {
            Kind::Values { left, operator, right } => {
                let arms = arms(breaks, |with| format!("l__ {with} r__"));
                let (left, right) = (part(left), part(right));
                format!(
                    "(match ({left}, {right}) {{ (l__, r__) => match {AT} {{ {arms} _ => l__ {operator} r__ }} }})"
                )
            }
            Kind::Compared { left, operator, right } => {
                let arms = arms(breaks, |with| format!("l__ {with} r__"));
                let (left, right) = (part(left), part(right));
                let by = if site.is_const { "" } else { "&" };
                format!(
                    "(match ({by}({left}), {by}({right})) {{ (l__, r__) => match {AT} {{ {arms} _ => l__ {operator} r__ }} }})"
                )
            }
            Kind::Lazy { left, is_and, right } => {
                let id = breaks[0].id;
                let (left, right) = (part(left), part(right));
                let operator = if *is_and { "!=" } else { "==" };
                format!(
                    "({{ let l__: bool = {left}; if l__ {operator} ({AT} == {id}) {{ {right} }} else {{ l__ }} }})"
                )
            }
            Kind::Assigned { left, operator, right } => {
                let (left, right) = (part(left), part(right));
                let arms = arms(breaks, |with| format!("{left} {with} r__"));
                format!("{{ let r__ = {right}; match {AT} {{ {arms} _ => {left} {operator} r__ }} }}")
            }
            Kind::Unary { operator, operand } => {
                let arms = arms(breaks, |_| "v__".into());
                format!("(match {} {{ v__ => match {AT} {{ {arms} _ => {operator}v__ }} }})", part(operand))
            }
            Kind::Arm { pattern, guard, .. } => {
                let deleted = breaks.iter().find(|one| one.genre == "MatchArm");
                let guards: Vec<&Break> =
                    breaks.iter().filter(|one| one.genre != "MatchArm").copied().collect();
                let guard = guard.as_ref().map_or("true".into(), part);
                let arms = arms(&guards, str::to_owned);
                let whether = deleted.map_or(String::new(), |one| format!("{AT} != {} && ", one.id));
                format!("{} if {whether}(match {AT} {{ {arms} _ => {guard} }}) ", part(pattern))
            }
            Kind::Field { name, value, base } => {
                let arms = arms(breaks, |_| format!("({}).{name}", part(base)));
                let value = value.as_ref().map_or(name.clone(), part);
                format!("{name}: match {AT} {{ {arms} _ => {value} }}")
            }
            Kind::Matched { .. } => part(&site.whole),
            Kind::Body => {
                let arms = arms(breaks, |with| format!("return {with}"));
                format!(" match {AT} {{ {arms} _ => {{}} }} {}", part(&site.whole))
            }
        }
    }
}

/// One arm for each break, with what stands in for the whole.
fn arms(breaks: &[&Break], what: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    for one in breaks {
        let id = one.id;
        let _ = write!(out, "{id} => /*<{id}*/{{ {} }}/*{id}>*/ ", what(&one.replacement));
    }
    out
}
