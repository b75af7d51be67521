//! A layer's names and metadata in memory, while and after its tar is read.
//!
//! A name that one entry replaced stays in the arena, unreachable; that is why the limits count what was ever
//! made. [`Tree::seal`] turns whiteouts and opaque marks into what overlayfs reads, and counts links.
//!
//! Invariants: node 0 is the root and a directory; a directory has one parent and no second name; no
//! component is empty, `.`, `..`, longer than 255 bytes or has a `/` or NUL; depth is at most [`MAX_DEPTH`].

use std::collections::{BTreeMap, HashMap};

use super::ingest::Meaning;
use super::{LayerError, Limits};

/// Index in the arena.
pub type NodeId = u32;
/// The root.
pub const ROOT: NodeId = 0;
/// Deepest nesting: well above any real image, and low enough to remove the tree with one descriptor a level.
pub const MAX_DEPTH: u16 = 512;
/// Most symbolic links on the way to one name, as in Linux.
const MAX_LINKS: usize = 40;
/// Most components walked on the way to one name, those of symbolic links included.
const MAX_STEPS: usize = 4096;
/// Attribute that makes a directory hide those below it.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Name and value, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What every inode has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: (i64, u32),
    /// Index in the tree's attribute sets; 0 is none.
    pub xattrs: u32,
}

/// What an inode is. `C` says where a regular file's content was put.
#[derive(Debug)]
pub enum Kind<C> {
    /// A directory.
    Dir(Box<Dir>),
    /// A regular file of some size.
    File(u64, C),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A directory's content.
#[derive(Debug, Default)]
pub struct Dir {
    /// Names, sorted as bytes.
    pub children: BTreeMap<Box<[u8]>, NodeId>,
    parent: NodeId,
    depth: u16,
    /// Names hidden in the layers below.
    whiteouts: BTreeMap<Box<[u8]>, Meta>,
    opaque: bool,
}

impl Dir {
    /// The directory it is in; the root's is itself.
    pub fn parent(&self) -> NodeId {
        self.parent
    }
}

/// An inode.
#[derive(Debug)]
pub struct Node<C> {
    /// Owner, mode, times.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind<C>,
    /// Names it has; a directory's counts as Unix counts it. Right after [`Tree::seal`].
    pub links: u32,
}

/// The tree of one layer.
pub struct Tree<C> {
    meaning: Meaning,
    nodes: Vec<Node<C>>,
    sets: Vec<Xattrs>,
    set_ids: HashMap<Xattrs, u32>,
    memory: u64,
    limits: Limits,
    /// The directory the last name was in: tars list a directory's files together.
    last: Option<(Vec<u8>, NodeId)>,
}

impl<C> Tree<C> {
    /// Whether something may have this name.
    pub fn check_name(&self, name: &[u8]) -> Result<(), LayerError> {
        check_length(name)?;
        if self.meaning == Meaning::Layer && name.starts_with(b".wh.") {
            return Err(LayerError::entry(name, "a whiteout can't be a directory"));
        }
        Ok(())
    }

    /// A root and nothing in it.
    pub fn new(limits: &Limits, meaning: Meaning) -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let root = Node { meta, kind: Kind::Dir(Box::default()), links: 2 };
        Self {
            meaning,
            nodes: vec![root],
            sets: vec![Vec::new()],
            set_ids: HashMap::from([(Vec::new(), 0)]),
            memory: 0,
            limits: *limits,
            last: None,
        }
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node<C> {
        &self.nodes[id as usize]
    }

    /// Its content, if it is a directory.
    pub fn dir(&self, id: NodeId) -> Option<&Dir> {
        match &self.node(id).kind {
            Kind::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> &mut Dir {
        match &mut self.nodes[id as usize].kind {
            Kind::Dir(dir) => dir,
            _ => unreachable!("only a directory's id is handed around as one"),
        }
    }

    /// The attributes of a node.
    pub fn xattrs(&self, meta: &Meta) -> &Xattrs {
        &self.sets[meta.xattrs as usize]
    }

    /// All sets of attributes, by id.
    pub fn sets(&self) -> &[Xattrs] {
        &self.sets
    }

    /// Nodes ever made; ids are below it.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the root hides everything below the layer.
    pub fn opaque_root(&self) -> bool {
        self.dir(ROOT).is_some_and(|dir| dir.opaque)
    }

    /// Counts memory against the limit.
    pub fn charge(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.memory += bytes as u64;
        let max = self.limits.max_memory;
        if self.memory > max {
            return Err(LayerError::Limit { what: "bytes of names and metadata", max });
        }
        Ok(())
    }

    /// The id of a set of attributes, sorted by name.
    pub fn intern(&mut self, set: Xattrs) -> Result<u32, LayerError> {
        if let Some(&id) = self.set_ids.get(&set) {
            return Ok(id);
        }
        self.charge(2 * set.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>())?;
        let id = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.set_ids.insert(set, id);
        Ok(id)
    }

    fn push(&mut self, meta: Meta, kind: Kind<C>) -> Result<NodeId, LayerError> {
        let max = self.limits.max_entries;
        if self.nodes.len() as u64 > max {
            return Err(LayerError::Limit { what: "entries", max });
        }
        self.charge(size_of::<Node<C>>())?;
        self.nodes.push(Node { meta, kind, links: 0 });
        Ok((self.nodes.len() - 1) as NodeId)
    }

    /// The directory that `path` (clean, without its last component) leads to, made where it is missing.
    pub fn make_parents(&mut self, path: &[u8]) -> Result<NodeId, LayerError> {
        if let Some((last, id)) = &self.last
            && last == path
        {
            return Ok(*id);
        }
        let id = self.walk(path, true)?.ok_or_else(|| LayerError::entry(path, "not found"))?;
        self.last = Some((path.to_vec(), id));
        Ok(id)
    }

    /// The directory that `path` leads to, if it is there.
    pub fn find_dir(&mut self, path: &[u8]) -> Result<Option<NodeId>, LayerError> {
        self.walk(path, false)
    }

    /// Follows `path` from the root; symbolic links on the way can't leave it.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<NodeId>, LayerError> {
        let mut dir = ROOT;
        let mut links = 0;
        let mut steps = 0;
        let mut todo: Vec<Box<[u8]>> = components(path).map(Box::from).rev().collect();
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps + todo.len() > MAX_STEPS {
                return Err(LayerError::entry(path, "too many directories on the way to it"));
            }
            if *name == *b".." {
                dir = self.dir(dir).map_or(ROOT, Dir::parent);
                continue;
            }
            let child = self.dir(dir).and_then(|dir| dir.children.get(&name).copied());
            match child.map(|id| (id, &self.node(id).kind)) {
                Some((id, Kind::Dir(_))) => dir = id,
                Some((_, Kind::Symlink(target))) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::entry(path, "too many symbolic links on the way to it"));
                    }
                    if target.starts_with(b"/") {
                        dir = ROOT;
                    }
                    todo.extend(components(target).map(Box::from).rev());
                }
                Some(_) => {
                    let name = name.escape_ascii();
                    return Err(LayerError::entry(path, format!("\"{name}\" on the way is not a directory")));
                }
                None if make => dir = self.make_dir(dir, &name)?,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// A directory that no entry has named yet.
    fn make_dir(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, LayerError> {
        self.check_name(name)?;
        self.insert(parent, name, Meta { mode: 0o755, ..Meta::default() }, Kind::Dir(Box::default()))
    }

    /// Makes or replaces `name`. A directory over a directory takes the new metadata and keeps its content.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        meta: Meta,
        mut kind: Kind<C>,
    ) -> Result<NodeId, LayerError> {
        let old = self.dir(parent).and_then(|dir| dir.children.get(name).copied());
        if let Kind::Dir(dir) = &mut kind {
            if let Some(old) = old.filter(|&old| self.dir(old).is_some()) {
                self.nodes[old as usize].meta = meta;
                return Ok(old);
            }
            dir.parent = parent;
            dir.depth = self.dir(parent).map_or(0, |dir| dir.depth) + 1;
            if dir.depth > MAX_DEPTH {
                return Err(LayerError::entry(name, "directories nested too deeply"));
            }
        }
        let id = self.push(meta, kind)?;
        self.set_child(parent, name, id, old.is_some())?;
        Ok(id)
    }

    /// Gives the node `id`, which is not a directory, another name.
    pub fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), LayerError> {
        let old = self.dir(parent).and_then(|dir| dir.children.get(name).copied());
        self.set_child(parent, name, id, old.is_some())
    }

    fn set_child(&mut self, dir: NodeId, name: &[u8], id: NodeId, replaces: bool) -> Result<(), LayerError> {
        if replaces {
            // What was cached may have been inside.
            self.last = None;
        }
        // What a map's entry costs beside the name itself.
        self.charge(name.len() + 48)?;
        self.dir_mut(dir).children.insert(name.into(), id);
        Ok(())
    }

    /// Replaces the root's metadata.
    pub fn set_root(&mut self, meta: Meta) {
        self.nodes[ROOT as usize].meta = meta;
    }

    /// Hides `name` of the layers below.
    pub fn whiteout(&mut self, parent: NodeId, name: &[u8], meta: Meta) -> Result<(), LayerError> {
        self.charge(name.len() + 48 + size_of::<Meta>())?;
        self.dir_mut(parent).whiteouts.insert(name.into(), meta);
        Ok(())
    }

    /// Hides what `dir` has in the layers below.
    pub fn set_opaque(&mut self, dir: NodeId) {
        self.dir_mut(dir).opaque = true;
    }

    /// Turns whiteouts and opaque marks into devices and attributes, and counts links. Gives the ids that can
    /// be reached, a directory before what is in it.
    pub fn seal(&mut self) -> Result<Vec<NodeId>, LayerError> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut seen = vec![false; self.nodes.len()];
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            order.push(id);
            self.seal_dir(id)?;
            seen.resize(self.nodes.len(), false);
            let children: Vec<NodeId> =
                self.dir(id).into_iter().flat_map(|dir| dir.children.values()).copied().collect();
            let mut links = 2;
            for &child in &children {
                if self.dir(child).is_some() {
                    links += 1;
                    continue;
                }
                self.nodes[child as usize].links += 1;
                if !std::mem::replace(&mut seen[child as usize], true) {
                    order.push(child);
                }
            }
            self.nodes[id as usize].links = links;
            todo.extend(children.into_iter().rev().filter(|&child| self.dir(child).is_some()));
        }
        Ok(order)
    }

    fn seal_dir(&mut self, id: NodeId) -> Result<(), LayerError> {
        let whiteouts = std::mem::take(&mut self.dir_mut(id).whiteouts);
        for (name, meta) in whiteouts {
            match self.dir(id).and_then(|dir| dir.children.get(&name).copied()) {
                // The layer's own directory must not show what the name hides.
                Some(child) if self.dir(child).is_some() => self.set_opaque(child),
                Some(_) => {}
                None => drop(self.insert(id, &name, meta, Kind::Char(0, 0))?),
            }
        }
        if self.dir(id).is_some_and(|dir| dir.opaque) {
            let mut set = self.xattrs(&self.node(id).meta).clone();
            set.push((OPAQUE.0.to_vec(), OPAQUE.1.to_vec()));
            set.sort();
            self.nodes[id as usize].meta.xattrs = self.intern(set)?;
        }
        Ok(())
    }
}

/// The components of a path; empty ones and `.` are left out.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// Writes `path` without empty, `.` and `..` components into `clean`; an absolute path is taken as one from
/// the root. False if it leads out of the root.
pub fn clean(path: &[u8], clean: &mut Vec<u8>) -> bool {
    clean.clear();
    for name in components(path) {
        if name != b".." {
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
        } else if !clean.is_empty() {
            clean.truncate(clean.iter().rposition(|&b| b == b'/').unwrap_or(0));
        } else if !path.starts_with(b"/") {
            return false;
        }
    }
    true
}

/// Splits a clean path into its directory and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Refuses what no file system could hold, and whiteouts where a directory or a file is meant.
fn check_length(name: &[u8]) -> Result<(), LayerError> {
    if name.len() > 255 {
        return Err(LayerError::entry(name, "its name is longer than 255 bytes"));
    }
    if name.contains(&0) {
        return Err(LayerError::entry(name, "its name has a NUL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree<()> {
        Tree::new(&Limits::default(), Meaning::Layer)
    }

    #[test]
    fn paths_are_cleaned() {
        let mut out = Vec::new();
        for (path, want) in [
            ("a/b", Some("a/b")),
            ("./a//./b/", Some("a/b")),
            ("/../../a", Some("a")),
            ("a/../b/c/..", Some("b")),
            ("a/..", Some("")),
            ("", Some("")),
            ("a/../..", None),
            ("..", None),
        ] {
            let inside = clean(path.as_bytes(), &mut out);
            let got = inside.then(|| String::from_utf8(out.clone()).unwrap());
            assert_eq!(got.as_deref(), want, "{path}");
        }
    }

    #[test]
    fn a_replaced_directory_is_not_remembered() {
        let mut tree = tree();
        let old = tree.make_parents(b"a/b").unwrap();
        tree.insert(ROOT, b"a", Meta::default(), Kind::Fifo).unwrap();
        assert!(tree.make_parents(b"a/b").is_err());
        tree.insert(ROOT, b"a", Meta::default(), Kind::Dir(Box::default())).unwrap();
        assert_ne!(tree.make_parents(b"a/b").unwrap(), old);
    }

    #[test]
    fn links_that_multiply_are_given_up() {
        let mut tree = tree();
        let target = |next: usize| format!("l{next}/{}", "x/".repeat(2000)).into_bytes();
        for i in 0..39 {
            let link = Kind::Symlink(target(i + 1).into());
            tree.insert(ROOT, format!("l{i}").as_bytes(), Meta::default(), link).unwrap();
        }
        let error = tree.make_parents(b"l0").unwrap_err().to_string();
        assert!(error.contains("too many directories"), "{error}");
    }

    #[test]
    fn only_what_is_reachable_is_counted() {
        let mut tree = tree();
        let dir = tree.make_parents(b"d").unwrap();
        let file = tree.insert(dir, b"f", Meta::default(), Kind::File(0, ())).unwrap();
        tree.link(ROOT, b"g", file).unwrap();
        tree.insert(dir, b"lost", Meta::default(), Kind::Fifo).unwrap();
        tree.insert(dir, b"lost", Meta::default(), Kind::Fifo).unwrap();
        let order = tree.seal().unwrap();
        assert_eq!(order.len(), 4);
        assert_eq!((tree.node(file).links, tree.node(ROOT).links, tree.node(dir).links), (2, 3, 2));
    }
}
