//! A virtual machine that is started before it is known for which instance.
//!
//! ```text
//!   start: a clone of its kind's template ─ get_ready: the agent rehearses; it stands still
//!     ─ take: the instance is of the kind, its disk gets its name ─▶ a [`Vm`] as from [`Vm::start`], which goes on
//! ```
//!
//! Emulated, a clone spends most of its start on what it does for the first time: QEMU translates each piece of the guest's
//! kernel when that is first run. Here that was done before. The guest has nothing yet that an instance could recognise:
//! entropy, time, names and the program come with its configuration, as to any clone.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use proa_protocol::message::Request;

use crate::machine::{Parts, Vm, may_be_cloned};
use crate::template::{self, InstanceKind, Shape, Template, TemplateRequest};
use crate::{VmError, VmSpec};

/// How long the rehearsal may take; an emulated guest does it in half a second.
const LIMIT: Duration = Duration::from_secs(60);

/// How long its guest has afterwards for what its kernel does later.
const REST: Duration = Duration::from_millis(300);

/// A machine that waits, or gets ready for that. Dropping it kills it; its disk is left.
pub struct Standby {
    vm: Vm,
    /// The template's name, which says what it is made of.
    key: String,
    kind: Box<InstanceKind>,
    disk: PathBuf,
}

/// What it is made for and with.
#[derive(Debug, Clone)]
pub struct StandbySpec {
    /// Names the VMM's process and its user.
    pub id: String,
    /// An existing directory, which the VMM's view covers.
    pub view: PathBuf,
    /// Its writable disk, on the file system of the instances'. What is there is nobody's.
    pub disk: PathBuf,
    /// Taps for as many networks as instances of the kind have.
    pub taps: Vec<Arc<OwnedFd>>,
}

impl Standby {
    /// Starts one. Nothing where there is no template of that kind.
    ///
    /// # Errors
    /// As for [`Vm::start`].
    pub fn start(request: &TemplateRequest, spec: StandbySpec) -> Result<Option<Self>, VmError> {
        let Some(kind) = request.kind.clone() else { return Ok(None) };
        match fs::remove_file(&spec.disk) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VmError::io(&spec.disk)(error));
            }
            _ => {}
        }
        let vm_spec = VmSpec {
            id: spec.id,
            kernel: request.kernel.clone(),
            agent: request.agent.clone(),
            store: request.store.clone(),
            run_dir: spec.view,
            memory: request.memory,
            cpus: request.cpus,
            layers: kind.layers.clone(),
            rw_disk: spec.disk.clone(),
            taps: spec.taps,
            templates: true,
            ..VmSpec::default()
        };
        let parts = Parts::find(&vm_spec, false, &mut |_| {})?;
        let shape = Shape::new(&parts, request)?;
        let Some(template) = Template::find(&shape, &mut |_| {}) else { return Ok(None) };
        let vm = parts.restore(&vm_spec, template, true)?;
        let key = shape.key().to_owned();
        Ok(Some(Self { vm, key, kind, disk: spec.disk }))
    }

    /// Has its agent rehearse a start, and lets it stand still, so that it costs none of the host's time. Waits for that.
    ///
    /// # Errors
    /// The guest ended, or does not manage.
    pub fn get_ready(&mut self) -> Result<(), VmError> {
        let wanted = Request::Rehearse(Box::new(self.kind.config.clone()));
        template::ask(self.vm.stream(), &wanted, LIMIT).map_err(|why| self.vm.explain(why))?;
        template::rest(self.vm.stream(), REST);
        self.vm.control.stop()
    }

    /// Readable when the VMM has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.vm.pidfd()
    }

    /// Whether it is as a machine would be that was started for this instance: of its kind, and made of what such a machine
    /// would be made of now.
    pub fn fits(&self, spec: &VmSpec) -> bool {
        let fits = || {
            let parts = Parts::find(spec, false, &mut |_| {})?;
            let Some(request) = TemplateRequest::of_kind(spec) else { return Ok::<_, VmError>(false) };
            Ok(Shape::new(&parts, &request)?.key() == self.key)
        };
        // What cannot be found now, a start says.
        may_be_cloned(spec) && fits().unwrap_or(false)
    }

    /// Gives the machine to the instance that it fits: it has the instance's disk, and goes on.
    ///
    /// # Errors
    /// The disk cannot be given its name, or the VMM is gone.
    pub fn take(mut self, spec: &VmSpec) -> Result<Vm, VmError> {
        fs::rename(&self.disk, &spec.rw_disk).map_err(VmError::io(&spec.rw_disk))?;
        self.vm.belongs_to(spec.rw_disk.clone());
        self.vm.control.order_go_on()?;
        Ok(self.vm)
    }
}
